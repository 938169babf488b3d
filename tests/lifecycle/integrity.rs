//! What the guest's report says: each bit, each doubt.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lamina::api::reason::Reason;
use lamina::api::{ConditionType, Phase, PlatformLayer};
use lamina::demo::person::{self, Check, Deed};
use lamina::sim::guest::{Guest, Program, program};
use lamina::sim::power::Exit;
use serde_json::json;

use crate::common::eventually;
use crate::common::rig::{Rig, idle, machine, ready, says, status};

type Lines = std::collections::BTreeMap<String, String>;
/// What is done to a report before it is sealed, and after.
type Change = fn(&mut Lines);

/// One boot after the other reports with the next of these, then halts; the first boot installs the tools.
fn reporting(checks: Vec<(Check, Change, Change)>) -> Program {
    let left = Arc::new(Mutex::new(VecDeque::from(checks)));
    program(move |guest: Guest| {
        let next = if guest.has_tools() { left.lock().expect("checks").pop_front() } else { None };
        async move { one_boot(&guest, next).await }
    })
}

async fn one_boot(guest: &Guest, next: Option<(Check, Change, Change)>) -> Exit {
    if !guest.has_tools() {
        guest.set_tools(true);
        return Exit::Reboot;
    }
    let written = async {
        guest.report_tools().await.ok()?;
        let mark = uuid::Uuid::new_v4().to_string();
        guest.write(&Lines::from([("vm-data/lamina/boot".to_owned(), mark)])).await.ok()?;
        let (check, before, after) = next?;
        let mut lines = person::said(guest, &check);
        before(&mut lines);
        let mut lines = person::sealed(&lines);
        after(&mut lines);
        let keys = lines.into_iter().map(|(k, v)| (format!("vm-data/lamina/report/{k}"), v)).collect();
        guest.remove(&["vm-data/lamina/report".to_owned()]).ok()?;
        guest.write(&keys).await.ok()
    };
    let _nobody_listens = written.await;
    guest.stage("reported", Duration::from_secs(10)).await;
    Exit::Halt
}

fn as_it_is(_: &mut Lines) {}

/// The reasons of what status.integrity lists.
fn doubts(layer: &PlatformLayer) -> Vec<String> {
    status(layer).integrity.expect("a verdict").findings.into_iter().map(|f| f.reason).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bit_is_a_finding_with_its_own_reason_and_remedy() {
    let rig = Rig::new().await;
    // As the vendor gives them away, and not as the code has them.
    let cases = [
        (1, "BypassEnabled"),
        (2, "RebootPending"),
        (4, "InstallerBusy"),
        (8, "NGenRunning"),
        (16, "RunOncePending"),
        (32, "WindowsUpgradeUnfinished"),
        (64, "NGenNeeded"),
        (128, "SCCMClientIdentity"),
        (256, "FSLogixAltitude"),
        (512, "WEMKeyFile"),
        (1024, "TokensLeft"),
        (2048, "KMSDirectoryMissing"),
        (4096, "KMSPolicyMissing"),
        (8192, "Bit8192"),
        (1_099_511_627_776, "Bit1099511627776"),
    ];
    let mut cases: Vec<(u64, String)> = cases.map(|(bit, reason)| (bit, reason.to_owned())).into();
    let checks = cases.iter().map(|(bit, _)| Check { block_finalize: *bit, ..Check::default() });
    let checks =
        checks.chain([Check { findings: vec!["PendingRename C:\\x".into()], ..Check::default() }, Check::default()]);
    rig.guest("bits", reporting(checks.map(|c| (c, as_it_is as Change, as_it_is as Change)).collect()));
    let _controller = rig.run().await;
    rig.layer("bits", json!({})).await;
    cases.push((0, "PendingRename".to_owned()));
    let runs = cases.len() as u64;
    for (n, (_, reason)) in cases.into_iter().enumerate() {
        let found = rig
            .until("bits", &reason, |l| {
                let findings = l.status.as_ref().and_then(|s| s.integrity.as_ref()).map(|i| i.findings.clone());
                findings.is_some_and(|f| f.len() == 1 && f[0].reason == reason)
                    && ready(l).is_some_and(|(r, _)| r == "FixIntegrity")
                    // While it runs, findings are told too; a token given then would be used up without a start.
                    && status(l).phase == Some(Phase::AwaitingFinalize)
                    && says(l, ConditionType::IntegrityVerified) == "False/FindingsOpen"
            })
            .await;
        let finding = status(&found).integrity.expect("a verdict").findings.remove(0);
        let remedy = finding.remedy.expect("a remedy");
        assert_eq!(remedy, Reason::parse(&reason).map_or(remedy.clone(), |r| r.remedy().to_owned()));
        let (_, message) = ready(&found).expect("Ready");
        assert!(
            !remedy.is_empty()
                && message.contains(&reason)
                && message.contains(remedy.trim_end_matches('.'))
                && !message.contains(".."),
            "{message}"
        );
        rig.patch("bits", json!({"machine": {"restartToken": n.to_string()}})).await;
    }
    rig.until_reason("bits", "ApproveFinalize").await;
    assert_eq!(rig.calls("Async.VM.start"), 1 + runs, "one start, and one for each newer token");
    assert_eq!(rig.calls("pool.sync_database"), 1, "before the first start of a machine alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_in_doubt_does_not_count() {
    let rig = Rig::new().await;
    // No two in a row that are told alike: a token given on the old word would be used up while the machine runs.
    let cases: [(Change, Change, &str, &str); 9] = [
        (|l| drop(l.insert("nonce".into(), "stale".into())), as_it_is, "nonce", "ReportOfOtherMachine"),
        (as_it_is, |l| drop(l.insert("sealed".into(), "0".repeat(64))), "seal", "ReportUnsealed"),
        (|l| drop(l.insert("boot".into(), "earlier".into())), as_it_is, "of an earlier boot", "ReportOfEarlierBoot"),
        (as_it_is, |l| drop(l.insert("block-finalize".into(), "00".into())), "seal", "ReportUnsealed"),
        (|l| drop(l.insert("domid".into(), "1".into())), as_it_is, "was started again", "ReportOfEarlierBoot"),
        (as_it_is, |l| drop(l.remove("sealed")), "seal", "ReportUnsealed"),
        (|l| drop(l.insert("boot".into(), "earlier".into())), as_it_is, "of an earlier boot", "ReportOfEarlierBoot"),
        // As it is written, key by key.
        (as_it_is, |l| l.retain(|key, _| key.as_str() < "nonce"), "seal", "ReportUnsealed"),
        (as_it_is, |l| l.clear(), "no report", "NoReport"),
    ];
    rig.guest("doubt", reporting(cases.iter().map(|(a, b, ..)| (Check::default(), *a, *b)).collect()));
    let _controller = rig.run().await;
    rig.layer("doubt", json!({"finalize": {"approved": "1"}})).await;
    for (n, (_, _, words, reason)) in cases.iter().enumerate() {
        let token = n.checked_sub(1).map(|n| n.to_string());
        let blocked = rig
            .until("doubt", words, |l| {
                l.status.as_ref().and_then(|s| s.machine.as_ref()).is_some_and(|m| m.restart_token == token)
                    && ready(l).is_some_and(|(r, m)| r == "FixIntegrity" && m.contains(words))
            })
            .await;
        assert_eq!(says(&blocked, ConditionType::IntegrityVerified), "Unknown/IntegrityUnknown", "{words}");
        assert_eq!(doubts(&blocked), [*reason], "{words}");
        assert!(status(&blocked).versions.is_empty());
        rig.patch("doubt", json!({"machine": {"restartToken": n.to_string()}})).await;
    }
}

/// No number, or none that can be read, is not a good one.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_without_a_verdict_blocks() {
    let rig = Rig::new().await;
    let no_number: Change = |l| drop(l.insert("block-finalize".into(), "many".into()));
    rig.guest("mute", reporting(vec![(Check::default(), no_number, as_it_is)]));
    let _controller = rig.run().await;
    rig.layer("mute", json!({"finalize": {"approved": "1"}})).await;
    let blocked = rig.until_reason("mute", "FixIntegrity").await;
    assert!(ready(&blocked).is_some_and(|(_, m)| m.contains("NoVerdict")), "{blocked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_after_the_report_needs_a_new_check() {
    let rig = Rig::new().await;
    let boots = vec![
        vec![Deed::Install, Deed::Reboot],
        vec![Deed::Report(Check::default()), Deed::Reboot],
        vec![Deed::PowerOff],
        vec![Deed::Report(Check::default()), Deed::PowerOff],
    ];
    rig.guest("reboots", person::person(boots));
    let _controller = rig.run().await;
    rig.layer("reboots", json!({"finalize": {"approved": "1"}})).await;
    let blocked = rig.until_reason("reboots", "FixIntegrity").await;
    assert_eq!(says(&blocked, ConditionType::IntegrityVerified), "Unknown/IntegrityUnknown");
    assert_eq!(doubts(&blocked), ["ReportOfEarlierBoot"]);
    rig.patch("reboots", json!({"machine": {"restartToken": "a"}})).await;
    rig.until_finalized("reboots", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_by_somebody_else_after_the_report_needs_a_new_check() {
    let rig = Rig::new().await;
    let boots =
        vec![vec![Deed::Install, Deed::Reboot], vec![Deed::Report(Check::default()), Deed::PowerOff], vec![Deed::Stay]];
    rig.guest("meddled", person::person(boots));
    let _controller = rig.run().await;
    rig.layer("meddled", json!({})).await;
    let layer = rig.until_reason("meddled", "ApproveFinalize").await;
    let vm = rig.hands.machine(&machine(&layer)).await.expect("M").r;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    rig.until_reason("meddled", "InstallSoftware").await;
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    let blocked = rig.until_reason("meddled", "FixIntegrity").await;
    assert_eq!(says(&blocked, ConditionType::IntegrityVerified), "Unknown/IntegrityUnknown");
    assert_eq!(doubts(&blocked), ["ReportOfEarlierBoot"]);
    rig.approve("meddled", "1").await;
    rig.meanwhile().await;
    let still = rig.until_reason("meddled", "FixIntegrity").await;
    assert!(status(&still).versions.is_empty());
    assert_eq!(rig.calls("Async.VM.start"), 1);
}

/// Each host counts its own domains: a boot on another one may have the number of the boot that was checked, and everything it wrote.
#[tokio::test(flavor = "multi_thread")]
async fn a_boot_of_the_same_number_on_another_host_needs_a_check_of_its_own() {
    let rig = Rig::new().await;
    let reports = reporting(vec![(Check::default(), as_it_is, as_it_is)]);
    rig.guest(
        "twin",
        program(move |guest: Guest| {
            let reports = Arc::clone(&reports);
            async move {
                if guest.boot == 1 {
                    guest.set_tools(true);
                    return reports(guest).await;
                }
                // Nothing in it tells of this boot.
                guest.stage("silent", Duration::from_secs(10)).await;
                Exit::Halt
            }
        }),
    );
    rig.sim.pool.clock.hold("guest/reported");
    let _controller = rig.run().await;
    rig.layer("twin", json!({})).await;
    let running = rig.until_reason("twin", "ShutDownGuest").await;
    let vm = async || rig.hands.machine(&machine(&running)).await.expect("M");
    let (here, first) = (vm().await.row["resident_on"].clone(), vm().await.row["domid"].clone());
    rig.sim.pool.clock.unhold("guest/reported");
    rig.until_reason("twin", "ApproveFinalize").await;
    let hosts = rig.hands.all("host").await;
    let other = hosts.iter().find(|host| json!(host.r) != here).expect("another host");
    rig.sim.pool.clock.hold("guest/silent");
    rig.hands.call("VM.start_on", json!([vm().await.r, other.r, false, false])).await;
    assert_eq!(vm().await.row["domid"], first, "another host's first domain, too");
    let before = vm().await.key("boot").map(str::to_owned);
    eventually("the boot is noted", async || (vm().await.key("boot") != before.as_deref()).then_some(())).await;
    rig.sim.pool.clock.unhold("guest/silent");
    let blocked = rig.until_reason("twin", "FixIntegrity").await;
    assert_eq!(doubts(&blocked), ["ReportOfEarlierBoot"]);
    rig.approve("twin", "1").await;
    rig.meanwhile().await;
    let still = rig.until_reason("twin", "FixIntegrity").await;
    assert!(status(&still).versions.is_empty());
}

/// The check is clean and the machine still runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_check_asks_for_the_shutdown_and_findings_for_mending() {
    let rig = Rig::new().await;
    let then_stay = |bits| {
        let check = Check { block_finalize: bits, ..Check::default() };
        person::person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::Report(check), Deed::Stay]])
    };
    rig.guest("clean", then_stay(0));
    rig.guest("dirty", then_stay(16));
    rig.guest("none", idle());
    let _controller = rig.run().await;
    for (name, reason, words) in [
        ("clean", "ShutDownGuest", "Shutdown For Finalize"),
        ("dirty", "FixIntegrity", "RunOncePending"),
        ("none", "InstallSoftware", "console"),
    ] {
        rig.layer(name, json!({})).await;
        let waits = rig.until_reason(name, reason).await;
        let (_, message) = ready(&waits).expect("Ready");
        assert!(message.contains(words) && message.contains(&format!("{name} 1 packaging")), "{message}");
    }
}

/// What a status can hold is no reason for the API server to refuse it, nor to hide that there is more.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_report_is_cut_where_it_is_told() {
    let rig = Rig::new().await;
    let long = |n: usize| format!("Odd{n} {}", "\u{1f9ea} what was found ".repeat(150));
    let check = Check { block_finalize: 1 << 12, findings: (0..40).map(long).collect(), ..Check::default() };
    rig.guest("long", person::person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::Report(check), Deed::Stay]]));
    let _controller = rig.run().await;
    rig.layer("long", json!({})).await;
    let running = rig.until_reason("long", "FixIntegrity").await;
    assert_eq!(status(&running).phase, Some(Phase::MachineRunning));
    let vm = rig.hands.machine(&machine(&running)).await.expect("M").r;
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    let halted = rig
        .until("long", "halted", |l| {
            status(l).phase == Some(Phase::AwaitingFinalize) && ready(l).is_some_and(|(r, _)| r == "FixIntegrity")
        })
        .await;
    for layer in [running, halted] {
        let (_, message) = ready(&layer).expect("Ready");
        assert!(message.len() < 3000, "{} bytes", message.len());
        assert!(
            message.contains("KMSPolicyMissing") && message.contains("Odd3 ") && !message.contains("Odd4 "),
            "{message}"
        );
        assert!(message.contains("and 27 more, see status.integrity.findings"), "{message}");
        let findings = status(&layer).integrity.expect("a verdict").findings;
        let (last, named) = findings.split_last().expect("findings");
        assert_eq!((named.len(), named[30].reason.as_str()), (31, "Odd29"));
        assert_eq!((last.reason.as_str(), last.detail.as_deref()), ("MoreFindings", Some("10 more")));
    }
}

/// Without a report that counts nobody knows of rearms, whatever somebody wrote.
#[tokio::test(flavor = "multi_thread")]
async fn rearms_are_told_by_a_report_that_counts_alone() {
    let rig = Rig::new().await;
    let check = Check { rearms_before: Some(3), rearmed: true, ..Check::default() };
    let broken: Change = |l| drop(l.insert("sealed".into(), "0".repeat(64)));
    rig.guest("rearms", reporting(vec![(check.clone(), as_it_is, broken), (check, as_it_is, as_it_is)]));
    let _controller = rig.run().await;
    let kms = json!({
        "purpose": "Publishing", "platforms": {"provisioningService": "PVS", "connectionBroker": "XenDesktop"},
        "kms": {"rearm": true}, "integrity": "Skip",
    });
    rig.layer("rearms", kms).await;
    let turn = rig.until_reason("rearms", "ApproveFinalize").await;
    let (_, message) = ready(&turn).expect("Ready");
    assert!(message.contains("nobody knows whether Windows was rearmed"), "{message}");
    assert!(message.contains(&machine(&turn)), "{message}");
    rig.approve("rearms", "1").await;
    let done = rig.until_finalized("rearms", "1").await;
    assert_eq!(status(&done).versions[0].rearms_left, None);

    rig.patch("rearms", json!({"version": "2"})).await;
    rig.until_reason("rearms", "ApproveFinalize").await;
    rig.approve("rearms", "2").await;
    let done = rig.until_finalized("rearms", "2").await;
    assert_eq!(status(&done).versions[1].rearms_left, Some(2));
}
