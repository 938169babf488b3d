//! `VM.call_plugin`: commands for an agent inside (xapi.md 7.6). None of the simulated agents takes one; the refusals are the real ones.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Answer, Call, Pool, schema::Record, vm};
use crate::xapi::wire::{Failure, Ref};

/// One call per machine in this time (xapi.md 7.6).
const INTERVAL: Duration = Duration::from_secs(10);

/// When each machine was last called.
#[derive(Default)]
pub struct Calls(Mutex<HashMap<Ref, Instant>>);

impl Calls {
    /// # Errors
    /// `VM_CALL_PLUGIN_RATE_LIMIT [vm, interval, wait]`, both in seconds; a call that is refused so does not count.
    fn take(&self, pool: &Pool, vm: &Ref) -> Result<(), Failure> {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = pool.clock.scaled(INTERVAL);
        calls.retain(|_, at| at.elapsed() < interval);
        if let Some(at) = calls.get(vm) {
            let left = 1.0 - at.elapsed().as_secs_f64() / interval.as_secs_f64();
            let wait = left.clamp(0.0, 1.0) * INTERVAL.as_secs_f64();
            return Err(Failure::new(
                "VM_CALL_PLUGIN_RATE_LIMIT",
                [vm.to_string(), "10.".to_owned(), format!("{wait:.6}")],
            ));
        }
        calls.insert(vm.clone(), Instant::now());
        Ok(())
    }
}

/// Fails at once where other operations are under way (xapi.md 4.2).
///
/// # Errors
/// Those of `vm::check` and [`Calls::take`]; `XENAPI_MISSING_PLUGIN [name]`; `XENAPI_PLUGIN_FAILURE [status, text, text]`; for scripts `NOT_IMPLEMENTED` and
/// `FEATURE_RESTRICTED []`.
pub fn call(pool: &Pool, call: &Call) -> Answer {
    let (vm, plugin, function) = (call.reference(0), call.text(1), call.text(2));
    let db = pool.db();
    vm::check(&db, &vm, "call_plugin")?;
    if plugin != "guest-agent-operation" {
        return Err(Failure::new("XENAPI_MISSING_PLUGIN", [plugin]));
    }
    pool.world.plugins.take(pool, &vm)?;
    let metrics = db.link_to("VM", &vm, "guest_metrics")?;
    let other = db.find("VM_guest_metrics", &metrics).and_then(|m| m.get("other"));
    let feature = |key: &str| other.is_some_and(|o| o.get(key) == Some(&json!("1")));
    let failed = |status: &str, text: &str| Err(Failure::new("XENAPI_PLUGIN_FAILURE", [status, text, ""]));
    match function {
        "request-rdp-on" | "request-rdp-off" if feature("feature-ts2") => Ok(json!("")),
        "request-rdp-on" | "request-rdp-off" => failed("NON-ZERO", "Remote Desktop cannot be switched in this guest"),
        "run-script" if !feature("feature-xs-batcmd") => Err(Failure::new("NOT_IMPLEMENTED", ["run-script"])),
        "run-script" if !allowed(db.all("pool").next().map(|(_, row)| row)) => {
            Err(Failure::new::<String>("FEATURE_RESTRICTED", []))
        }
        "run-script" => failed("TIMEOUT", "the guest does not answer"),
        _ => failed("UNKNOWN_FUNCTION", function),
    }
}

fn allowed(pool: Option<&Record>) -> bool {
    let key = "allow_guest_agent_run_script";
    pool.and_then(|row| row.get("other_config")?.get(key)).and_then(Value::as_str) == Some("true")
}
