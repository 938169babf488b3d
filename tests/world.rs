//! The simulated world, spoken to by hand: disks, machines, guests and deaths of the daemon, without the controller and without its client.
//!
//! Each test names the section of `xapi.md` that it holds the simulator to, or says that it is about the instrument itself: faults, holds, world
//! files and the panel, which no real pool has.

mod checks;
mod disks;
mod guests;
mod machines;
mod pace;
mod panel;
mod paused;
mod plans;
mod refusals;
mod replays;
mod repositories;
mod restarts;
mod settings;
mod snapshots;
mod stages;
mod trees;

use std::time::Duration;

use lamina::sim::{
    clock::Clock,
    serve::{Options, Sim},
};
use serde_json::{Value, json};

use crate::common::hands::http;
use crate::wire::{Outcome, Raw};

/// A pool with a clock of the test's choice, and a session.
pub async fn pool(clock: Clock) -> Raw {
    let sim = Sim::start(Options { clock, ..Options::default() }).await.unwrap();
    let http = http(&sim);
    let mut raw = Raw { sim, http, session: String::new() };
    raw.session = raw.login("root", "secret").await.unwrap();
    raw
}

/// Fast enough to wait for.
pub async fn brisk() -> Raw {
    pool(Clock::new(50.0)).await
}

impl Raw {
    pub async fn named(&self, class: &str, name: &str) -> String {
        let found = self.call(&format!("{class}.get_by_name_label"), json!([name])).await.unwrap();
        assert_eq!(found.as_array().unwrap().len(), 1, "{class} {name}: {found}");
        found[0].as_str().unwrap().to_owned()
    }

    pub async fn get(&self, class: &str, object: &str, field: &str) -> Value {
        self.call(&format!("{class}.get_{field}"), json!([object])).await.unwrap()
    }

    /// Sends an `Async.` call and returns its task.
    pub async fn send_async(&self, method: &str, params: Value) -> String {
        let task = self.call(&format!("Async.{method}"), params).await.unwrap();
        task.as_str().unwrap().to_owned()
    }

    /// Looks after each change of the pool until there is something to see.
    pub async fn seen<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let mut changed = self.sim.pool.db().watch();
        loop {
            if let Some(found) = look().await {
                return found;
            }
            let waited = tokio::time::timeout(Duration::from_secs(20), changed.changed()).await;
            waited.unwrap_or_else(|_| panic!("{what}: nothing changes any more")).unwrap();
        }
    }

    /// The outcome of a task, once it has one.
    pub async fn wait(&self, task: &str) -> Outcome {
        self.seen(task, async || {
            let row = match self.call("task.get_record", json!([task])).await {
                Ok(row) => row,
                Err(gone) => return Some(Err(gone)),
            };
            match row["status"].as_str().unwrap() {
                "pending" => None,
                "success" => Some(Ok(json!(lamina::xapi::wire::task_result(row["result"].as_str().unwrap())))),
                _ => Some(Err(serde_json::from_value(row["error_info"].clone()).unwrap())),
            }
        })
        .await
    }

    pub async fn run(&self, method: &str, params: Value) -> Outcome {
        let task = self.send_async(method, params).await;
        self.wait(&task).await
    }

    /// Runs a call that makes something, and returns its reference.
    pub async fn make(&self, method: &str, params: Value) -> String {
        self.run(method, params).await.unwrap().as_str().unwrap().to_owned()
    }

    /// Waits until a field has a value.
    pub async fn until(&self, class: &str, object: &str, field: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.seen(&format!("{class}.{field} of {object}"), async || {
            Some(self.get(class, object, field).await).filter(&wanted)
        })
        .await
    }

    /// A machine of the template without disks, ready to start with a disk of its own and an empty drive. Returns machine and disk.
    pub async fn machine(&self, name: &str) -> (String, String) {
        let template = self.named("VM", "packaging").await;
        let vm = self.make("VM.clone", json!([template, name])).await;
        self.call("VM.set_is_a_template", json!([vm, false])).await.unwrap();
        let os = self.named("VDI", "win11-24h2").await;
        let disk = self.make("VDI.clone", json!([os])).await;
        self.call("VDI.set_name_label", json!([disk, format!("{name} disk")])).await.unwrap();
        self.vbd(&vm, Some(&disk), "0").await.unwrap();
        self.vbd(&vm, None, "3").await.unwrap();
        (vm, disk)
    }

    /// A disk's VBD, or an empty drive.
    pub async fn vbd(&self, vm: &str, disk: Option<&str>, device: &str) -> Outcome {
        let (kind, mode) = if disk.is_some() { ("Disk", "RW") } else { ("CD", "RO") };
        let vdi = disk.unwrap_or("OpaqueRef:NULL");
        let row = json!({
            "VM": vm, "VDI": vdi, "userdevice": device, "bootable": disk.is_some(), "mode": mode, "type": kind,
            "empty": disk.is_none(), "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        });
        self.call("VBD.create", json!([row])).await
    }
}
