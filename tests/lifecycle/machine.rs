//! The packaging machine: started once, restarted when asked, counted.

use kube::api::{Patch, PatchParams};
use lamina::api::{ConditionType, Phase, PlatformLayer};
use lamina::demo::person::{Deed, person};
use lamina::sim::clock::Clock;
use lamina::sim::faults::{self, Effect, Target};
use lamina::sim::{restart, serve};
use lamina::xapi::wire::{Failure, Ref};
use serde_json::json;

use crate::common::rig::{Rig, idle, machine, quick, ready, says, status, uid};

/// A boot so short that nobody saw it running is a boot.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_started_once_even_if_it_halts_at_once() {
    let rig = Rig::new().await;
    rig.hasty_guest("brief", lamina::sim::guest::program(|_| async { lamina::sim::power::Exit::Halt }));
    let controller = rig.run().await;
    rig.layer("brief", json!({})).await;
    let halted = rig.until_phase("brief", Phase::AwaitingFinalize).await;
    rig.until_reason("brief", "FixIntegrity").await;
    drop(controller);
    let _controller = rig.run().await;
    rig.meanwhile().await;
    assert_eq!(rig.calls("Async.VM.start"), 1);
    assert_eq!(machine(&rig.until_reason("brief", "FixIntegrity").await), machine(&halted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_token_starts_a_halted_machine_once() {
    let rig = Rig::new().await;
    rig.guest("token", idle());
    let _controller = rig.run().await;
    // The value at the start is as good as used.
    rig.layer("token", json!({"machine": {"restartToken": "zero"}})).await;
    let layer = rig.until_reason("token", "InstallSoftware").await;
    assert_eq!(status(&layer).machine.and_then(|m| m.restart_token).as_deref(), Some("zero"));
    // One that is first seen while it runs is used up.
    rig.patch("token", json!({"machine": {"restartToken": "one"}})).await;
    rig.until("token", "the token used", |l| status(l).machine.and_then(|m| m.restart_token).as_deref() == Some("one"))
        .await;
    let vm = rig.hands.machine(&machine(&layer)).await.expect("M").r;
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    rig.until_reason("token", "FixIntegrity").await;
    rig.meanwhile().await;
    assert_eq!(rig.calls("Async.VM.start"), 1);
    rig.patch("token", json!({"machine": {"restartToken": "two"}})).await;
    rig.until_phase("token", Phase::MachineRunning).await;
    rig.until_reason("token", "InstallSoftware").await;
    assert_eq!(rig.calls("Async.VM.start"), 2);
}

/// The pool forgets that a token was used, and which boots there were: nothing is started for a token that status knows for used, and a new
/// one is obeyed.
#[tokio::test(flavor = "multi_thread")]
async fn a_used_token_stays_used_when_the_pool_forgets() {
    let rig = Rig::new().await;
    rig.guest("token", idle());
    let _controller = rig.run().await;
    rig.layer("token", json!({})).await;
    let layer = rig.until_reason("token", "InstallSoftware").await;
    rig.patch("token", json!({"machine": {"restartToken": "one"}})).await;
    rig.until("token", "the token used", |l| status(l).machine.and_then(|m| m.restart_token).as_deref() == Some("one"))
        .await;
    restart::restart(&rig.sim.pool, false).await;
    let vm = rig.hands.machine(&machine(&layer)).await.expect("M").r;
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    let off = rig.until_reason("token", "FixIntegrity").await;
    rig.meanwhile().await;
    assert_eq!(rig.calls("Async.VM.start"), 1);
    assert_eq!(status(&off).machine.and_then(|m| m.restart_token).as_deref(), Some("one"));
    rig.patch("token", json!({"machine": {"restartToken": "two"}})).await;
    rig.until_reason("token", "InstallSoftware").await;
    assert_eq!(rig.calls("Async.VM.start"), 2);
}

/// A person asked, so even a clean report does not keep the machine off; its approval waits for the new report.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_a_valid_report_is_obeyed() {
    let rig = Rig::new().await;
    rig.guest("again", quick());
    let _controller = rig.run().await;
    rig.layer("again", json!({})).await;
    rig.until_reason("again", "ApproveFinalize").await;
    rig.patch("again", json!({"machine": {"restartToken": "x"}})).await;
    rig.until("again", "halted again", |l| {
        status(l).machine.and_then(|m| m.restart_token).as_deref() == Some("x")
            && l.status.as_ref().is_some_and(|s| s.phase == Some(Phase::AwaitingFinalize))
            && rig.calls("Async.VM.start") == 2
            && ready(l).is_some_and(|(r, _)| r == "ApproveFinalize")
    })
    .await;
    rig.approve("again", "1").await;
    rig.until_finalized("again", "1").await;
    assert_eq!(rig.calls("Async.VM.start"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_may_start_the_machine() {
    let rig = Rig::new().await;
    rig.guest("hand", quick());
    let _controller = rig.run().await;
    rig.layer("hand", json!({"machine": {"powerOn": false}, "finalize": {"policy": "OnShutdown"}})).await;
    let layer = rig.until_reason("hand", "StartMachine").await;
    assert_eq!(status(&layer).phase, Some(Phase::DiskCreated));
    let vm = machine(&layer);
    assert!(ready(&layer).is_some_and(|(_, m)| m.contains(&format!("xe vm-start uuid={vm}"))), "{layer:?}");
    let vm = rig.hands.machine(&vm).await.expect("M").r;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    rig.until_finalized("hand", "1").await;
    assert_eq!(rig.calls("Async.VM.start"), 0);
    rig.hands.assert_tidy().await;
}

/// Of two who start it at once the pool refuses one: where that is us, the machine runs all the same, and is not started again after its halt.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_another_won_is_no_start_to_be_made_up_for() {
    let rig = Rig::new().await;
    rig.guest("won", quick());
    let failure = Failure::new("VM_BAD_POWER_STATE", ["OpaqueRef:NULL", "halted", "running"]);
    let strike = |method: &str, effect| {
        rig.sim.pool.faults.add(faults::Fault { target: Target::Method(method.into()), effect, times: None });
    };
    strike("Async.VM.start", Effect::FailTask(failure));
    // The refusal is read once the other's machine runs.
    strike("task.destroy", Effect::Drop);
    let controller = rig.run().await;
    rig.layer("won", json!({"finalize": {"policy": "OnShutdown"}})).await;
    let layer = rig.until("won", "a start that failed", |_| rig.calls("Async.VM.start") > 0).await;
    drop(controller);
    let vm = rig.hands.machine(&machine(&layer)).await.expect("M").r;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    rig.sim.pool.faults.clear();
    let sent = rig.calls("Async.VM.start");
    let _controller = rig.run().await;
    rig.until_finalized("won", "1").await;
    assert_eq!(rig.calls("Async.VM.start"), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_machine_waits_to_be_resumed() {
    let rig = Rig::new().await;
    rig.guest("asleep", idle());
    let _controller = rig.run().await;
    rig.layer("asleep", json!({})).await;
    // In the middle of its boot, before it reports tools: nothing moves inside until it is resumed.
    let layer = rig.until_reason("asleep", "InstallSoftware").await;
    let vm = rig.hands.machine(&machine(&layer)).await.expect("M").r;
    rig.hands.call("VM.pause", json!([vm])).await;
    let paused = rig.until_reason("asleep", "ResumeMachine").await;
    assert_eq!(status(&paused).phase, Some(Phase::MachineRunning));
    assert!(ready(&paused).is_some_and(|(_, m)| m.contains("xe vm-unpause")), "{paused:?}");
    rig.hands.call("VM.unpause", json!([vm])).await;
    rig.until_reason("asleep", "InstallSoftware").await;
    rig.hands.call("VM.set_blocked_operations", json!([vm, {}])).await;
    rig.hands.call("VM.suspend", json!([vm])).await;
    let suspended = rig.until_reason("asleep", "ResumeMachine").await;
    assert!(ready(&suspended).is_some_and(|(_, m)| m.contains("xe vm-resume")), "{suspended:?}");
    rig.delete("asleep").await;
    rig.until_gone("asleep").await;
    rig.hands.assert_nothing_of(&uid(&layer)).await;
}

/// Whoever switches a restart behind our back on finds it off again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_restarts_the_machine_behind_our_back() {
    let rig = Rig::new().await;
    rig.guest("guarded", idle());
    let _controller = rig.run().await;
    rig.layer("guarded", json!({})).await;
    let layer = rig.until_reason("guarded", "InstallSoftware").await;
    let m = machine(&layer);
    let vm = rig.hands.machine(&m).await.expect("M");
    assert_eq!((vm.text("actions_after_crash"), vm.text("ha_restart_priority")), ("preserve", ""));
    rig.hands.call("VM.add_to_other_config", json!([vm.r, "auto_poweron", "true"])).await;
    rig.hands.call("VM.set_ha_restart_priority", json!([vm.r, "restart"])).await;
    rig.hands.call("VM.set_actions_after_shutdown", json!([vm.r, "restart"])).await;
    crate::common::eventually("they are off again", async || {
        let now = rig.hands.machine(&m).await.expect("M");
        let off = now.row["other_config"]["auto_poweron"].is_null()
            && now.text("ha_restart_priority").is_empty()
            && now.text("actions_after_shutdown") == "destroy";
        off.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_layer_is_left_alone_and_holds_its_deletion() {
    let rig = Rig::new().await;
    rig.guest("still", quick());
    let _controller = rig.run().await;
    rig.layer("still", json!({"suspend": true, "finalize": {"policy": "OnShutdown"}})).await;
    let held = rig.until_reason("still", "Suspended").await;
    assert_eq!(says(&held, ConditionType::Suspended), "True/Suspended");
    rig.meanwhile().await;
    assert_eq!(rig.hands.of_layer(&uid(&held)).await.len(), 0);
    rig.patch("still", json!({"suspend": false})).await;
    rig.until_finalized("still", "1").await;
    rig.patch("still", json!({"suspend": true})).await;
    let held = rig.until("still", "suspended", |l| says(l, ConditionType::Suspended) != "-").await;
    assert_eq!(says(&held, ConditionType::Ready), "True/Finalized");
    rig.delete("still").await;
    rig.meanwhile().await;
    assert_eq!(rig.hands.of_layer(&uid(&held)).await.len(), 1);
    rig.patch("still", json!({"suspend": false, "deletionPolicy": "Delete"})).await;
    rig.until_gone("still").await;
    rig.hands.assert_nothing_of(&uid(&held)).await;
}

/// One slot, three layers: one after the other, and those that wait name the one that holds it.
#[tokio::test(flavor = "multi_thread")]
async fn machine_slots_go_to_one_layer_at_a_time() {
    let rig = Rig::new().await;
    let limit = Patch::Merge(json!({"spec": {"limits": {"machines": 1}}}));
    rig.connectors().patch("lab", &PatchParams::default(), &limit).await.expect("a patch");
    for name in ["first", "second", "third"] {
        rig.guest(name, quick());
    }
    let controller = rig.run().await;
    rig.layer("first", json!({})).await;
    rig.until_reason("first", "ApproveFinalize").await;
    for name in ["second", "third"] {
        rig.layer(name, json!({"finalize": {"policy": "OnShutdown"}})).await;
        let waits = rig.until(name, "the holder named", |l| {
            ready(l).is_some_and(|(r, m)| r == "WaitingForSlot" && m.contains("first"))
        });
        assert_eq!(status(&waits.await).phase, Some(Phase::Pending));
    }
    assert_eq!(rig.calls("Async.VM.clone"), 1);
    // Metrics come after the status.
    let waiting = async |n| {
        let waits = controller.metric("lamina_waits{reason=\"WaitingForSlot\"}");
        (waits == n).then_some(())
    };
    crate::common::eventually("both are counted", async || waiting(2).await).await;
    rig.approve("first", "1").await;
    rig.until_finalized("first", "1").await;
    for name in ["second", "third"] {
        rig.until_finalized(name, "1").await;
    }
    crate::common::eventually("nobody waits", async || waiting(0).await).await;
    rig.hands.assert_tidy().await;
}

/// A layer that cannot go on holds no slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_layer_without_a_machine_holds_no_slot() {
    let rig = Rig::new().await;
    let limit = Patch::Merge(json!({"spec": {"limits": {"machines": 1}}}));
    rig.connectors().patch("lab", &PatchParams::default(), &limit).await.expect("a patch");
    rig.guest("fit", quick());
    let _controller = rig.run().await;
    rig.layer("broken", json!({"osLayer": {"disk": {"name": "nowhere"}}})).await;
    rig.until_reason("broken", "OSDiskNotFound").await;
    rig.layer("fit", json!({"finalize": {"policy": "OnShutdown"}})).await;
    rig.until_finalized("fit", "1").await;
}

/// The guest never shows its tools: told after ten minutes, with the usual causes.
#[tokio::test(flavor = "multi_thread")]
async fn tools_that_do_not_show_get_their_own_reason() {
    let rig = Rig::new().await;
    rig.guest("bare", person(vec![vec![Deed::Stay]]));
    let _controller = rig.run().await;
    rig.layer("bare", json!({})).await;
    let awaited = |l: &PlatformLayer| says(l, ConditionType::GuestToolsReady) == "False/ToolsAwaited";
    rig.until("bare", "awaited", awaited).await;
    let told = rig.until("bare", "overdue", |l| says(l, ConditionType::GuestToolsReady) == "False/ToolsNotSeen").await;
    assert!(ready(&told).is_some_and(|(r, m)| r == "InstallSoftware" && m.contains("firmware")), "{told:?}");
}

/// Everything that a layer may say of its machine, read where it must have come to.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_spec_says_of_the_machine_reaches_it() {
    let world = "disks: [{name: other-tools.iso, repository: ISO library, size_gib: 1}]";
    let world = serde_saphyr::from_str(world).expect("a world");
    let rig = Rig::of(serve::Options { clock: Clock::new(100.0), world, ..serve::Options::default() }).await;
    let _controller = rig.run().await;
    rig.layer(
        "settings",
        json!({
            "machine": {
                "cpus": 3, "memory": "6Gi", "networks": ["Packaging", "Internal", "Pool-wide network associated with eth0"],
                "toolsISO": "other-tools.iso", "powerOn": false,
            },
            "osLayer": {"firmware": "BIOS"},
        }),
    )
    .await;
    let layer = rig.until_reason("settings", "StartMachine").await;
    let vm = rig.hands.machine(&machine(&layer)).await.expect("M");
    assert_eq!((&vm.row["VCPUs_max"], &vm.row["VCPUs_at_startup"]), (&json!(3), &json!(3)));
    for field in ["memory_static_max", "memory_dynamic_max", "memory_dynamic_min"] {
        assert_eq!(vm.row[field], json!(6_u64 << 30), "{field}");
    }
    assert_eq!(vm.row["HVM_boot_params"]["firmware"], "bios");
    let mut cards: Vec<_> = rig.hands.all("VIF").await.into_iter().filter(|card| card.text("VM") == vm.r).collect();
    cards.sort_by_key(|card| card.text("device").parse::<u32>().expect("a device"));
    let mut names = Vec::new();
    for card in &cards {
        let networks = rig.hands.all("network").await;
        let network = networks.into_iter().find(|n| n.r == card.text("network")).expect("a network");
        names.push(network.text("name_label").to_owned());
    }
    assert_eq!(names, ["Packaging", "Internal", "Pool-wide network associated with eth0"]);
    let drives = rig.hands.all("VBD").await;
    let dvd = drives.iter().find(|d| d.text("VM") == vm.r && d.text("type") == "CD").expect("a DVD drive");
    let disc = rig.hands.all("VDI").await.into_iter().find(|d| d.r == dvd.text("VDI")).expect("a disc");
    assert_eq!(disc.text("name_label"), "other-tools.iso");
}

/// What somebody put into an ISO repository has no row before a scan (xapi.md 10): one is made for a layer's own choice, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_layers_own_tools_iso_is_scanned_for() {
    let world = "disks: [{name: other-tools.iso, repository: ISO library, size_gib: 1}]";
    let world = serde_saphyr::from_str(world).expect("a world");
    let rig = Rig::of(serve::Options { clock: Clock::new(100.0), world, ..serve::Options::default() }).await;
    let iso = rig.hands.named("VDI", "other-tools.iso").await;
    rig.sim.pool.db().delete("VDI", &Ref(iso.r));
    let scans = || rig.sim.pool.log.counts().get("Async.SR.scan").copied().unwrap_or_default();
    let _controller = rig.run().await;
    rig.connector_ready().await;
    assert_eq!(scans(), 0);
    let machine = |iso: &str| json!({"machine": {"toolsISO": iso, "powerOn": false}});
    rig.layer("own", machine("other-tools.iso")).await;
    rig.until_reason("own", "StartMachine").await;
    assert_eq!(scans(), 2, "each ISO repository");
    rig.layer("none", machine("nope.iso")).await;
    let stalled = rig.until_reason("none", "ToolsISONotFound").await;
    assert!(ready(&stalled).expect("Ready").1.contains("'nope.iso'"));
    crate::common::eventually("one scan more", async || (scans() == 4).then_some(())).await;
}

/// Before anything is made; and corrected, it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_not_there_is_told() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("lost", json!({"machine": {"networks": ["packaging"], "powerOn": false}})).await;
    let stalled = rig.until_reason("lost", "NetworkNotFound").await;
    let (_, message) = ready(&stalled).expect("Ready");
    assert!(message.contains("'packaging'") && message.contains("did you mean 'Packaging'?"), "{message}");
    assert_eq!(rig.sim.pool.log.number(), 0);
    rig.patch("lost", json!({"machine": {"networks": ["Packaging"]}})).await;
    rig.until_reason("lost", "StartMachine").await;
}
