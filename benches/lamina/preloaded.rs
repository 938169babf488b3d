//! A controller that starts over a world in which much is done: its memory at rest, and how long until it decides.

use std::time::{Duration, Instant};

use lamina::local::Who;
use serde_json::json;

use crate::common::binary::Binary;
use crate::common::copies::finalized;
use crate::common::rig::Rig;
use crate::lives::instant;
use crate::{row, title};

const LEASE: &str = "lamina-system";

pub async fn measure(layers: usize) {
    let rig = instant(1).await;
    finalized(&rig, layers).await;
    title(&format!("lamina run, {layers} layers Finalized in one pool"));

    let mut binary = start(&rig, &[]).await;
    binary.line("leading").await;
    while binary.metric("lamina_reconciles_total").await < layers as f64 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The first looks leave pages behind that the allocator takes its time with.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let writes = binary.metric("lamina_status_writes_total").await;
    assert_eq!(writes, 0.0, "statuses were written, where nothing has changed");
    let memory = memory(&binary);
    row("resident memory at rest", &memory[0]);
    row("at most since its start", &memory[1]);
    binary.stop().await;

    // Something to decide, and nothing to do: it shows in the API server alone.
    rig.layer("needs-a-look", json!({"suspend": true})).await;
    let begun = Instant::now();
    let mut binary = start(&rig, &["--log", "info,lamina::controller::layer=debug"]).await;
    let mut written = std::pin::pin!(async {
        rig.until_reason("needs-a-look", "Suspended").await;
        begun.elapsed()
    });
    // Its log is read all the while: it would stand still at a pipe that is full.
    let mut decisions = Vec::new();
    let written = loop {
        tokio::select! {
            written = &mut written => break written,
            _ = binary.line("decided") => decisions.push(begun.elapsed()),
        }
    };
    while decisions.len() < layers {
        binary.line("decided").await;
        decisions.push(begun.elapsed());
    }
    let (first, all) = (decisions[0], decisions[layers - 1]);
    let seconds = |d: Duration| format!("{:.2} s", d.as_secs_f64());
    row("from exec to the first decision (its log line)", &seconds(first));
    row("to the status of a layer that was created meanwhile", &seconds(written));
    row("until as many decisions are made as there are layers", &seconds(all));
    row("processor time until then", &seconds(processor(&binary)));
    binary.stop().await;
}

async fn start(rig: &Rig, more: &[&str]) -> Binary {
    let who = Who::ServiceAccount { namespace: LEASE, name: "lamina" };
    Binary::start(who, LEASE, &rig.namespace, more).await
}

/// VmRSS and VmHWM.
fn memory(binary: &Binary) -> [String; 2] {
    let text = std::fs::read_to_string(format!("/proc/{}/status", binary.pid())).expect("its status");
    ["VmRSS:", "VmHWM:"].map(|field| {
        let line = text.lines().find_map(|l| l.strip_prefix(field)).expect("a line");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        format!("{} MiB", kib / 1024)
    })
}

/// User and system time so far, in the kernel's hundredths of a second.
fn processor(binary: &Binary) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", binary.pid())).expect("its times");
    // After the name, which may hold anything but ends with the last bracket: utime is the 12th field, stime the 13th.
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let hundredths: u64 = [fields[11], fields[12]].iter().map(|f| f.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(hundredths * 10)
}
