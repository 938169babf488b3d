//! What counts as tools at work: each signal of xapi.md 7.3, and each that looks like one.

use super::*;
use crate::controller::inspect::tests::{r, table};
use crate::xapi::model::{Map, VmMetrics};

const STARTED: &str = "20260102T03:04:05Z";
const BEFORE: &str = "20260102T03:04:04Z";

fn map(entries: &[(&str, &str)]) -> Map {
    entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Drivers and agent as XenServer's tools show them, in a machine that was just started.
fn usual() -> GuestMetrics {
    GuestMetrics {
        uuid: "gm".into(),
        pv_drivers_detected: true,
        pv_drivers_version: map(&[("major", "9"), ("minor", "4"), ("micro", "-1"), ("build", "12")]),
        other: map(&[("feature-static-ip-setting", "1")]),
        last_updated: STARTED.into(),
        ..GuestMetrics::default()
    }
}

fn shown(guest: GuestMetrics, power_state: PowerState) -> Option<String> {
    let metrics = VmMetrics { uuid: "m".into(), start_time: STARTED.into() };
    let view =
        View { vm_metrics: table(vec![metrics]), guest_metrics: table(vec![guest]), synced: true, ..View::default() };
    let vm = Vm { uuid: "vm".into(), power_state, metrics: r("m"), guest_metrics: r("gm"), ..Vm::default() };
    tools_show(&view, &vm)
}

#[test]
fn tools_are_drivers_and_an_agent_in_the_present_boot() {
    let agent = |value: &str| map(&[("feature-static-ip-setting", value)]);
    let cases = [
        ("drivers and agent", usual(), Some("9.4.12")),
        // Old and foreign agents do not have the key; their version stands for it.
        ("an agent by its version", GuestMetrics { other: map(&[]), ..usual() }, Some("9.4.12")),
        ("an agent that denies the feature", GuestMetrics { other: agent("0"), ..usual() }, Some("9.4.12")),
        ("an agent by its feature", GuestMetrics { pv_drivers_version: map(&[]), ..usual() }, Some("0.0.0")),
        // Drivers of Windows Update.
        ("no agent", GuestMetrics { other: map(&[]), pv_drivers_version: map(&[]), ..usual() }, None),
        ("no agent, as it says", GuestMetrics { other: agent("0"), pv_drivers_version: map(&[]), ..usual() }, None),
        (
            "drivers' names alone",
            GuestMetrics { other: map(&[]), pv_drivers_version: map(&[("xenvbd", "XenServer 9.1")]), ..usual() },
            None,
        ),
        ("an agent without drivers", GuestMetrics { pv_drivers_detected: false, ..usual() }, None),
        ("metrics of an earlier boot", GuestMetrics { last_updated: BEFORE.into(), ..usual() }, None),
        ("metrics without a time", GuestMetrics { last_updated: String::new(), ..usual() }, None),
    ];
    for (what, guest, expected) in cases {
        assert_eq!(shown(guest, PowerState::Running).as_deref(), expected, "{what}");
    }
    // A clone has its source's metrics until it first runs.
    for power in [PowerState::Halted, PowerState::Paused, PowerState::Suspended, PowerState::Other] {
        assert_eq!(shown(usual(), power), None, "{power:?}");
    }
    let other = GuestMetrics { uuid: "another".into(), ..usual() };
    assert_eq!(shown(other, PowerState::Running), None, "no metrics at all");
}
