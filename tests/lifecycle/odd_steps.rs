//! Steps that do not simply end: one that hangs or crashes, one that restarts the machine by itself, and steps changed under way.

use std::sync::Arc;

use lamina::api::layer_status::StepState;
use lamina::demo::person::{Deed, Image, person_at};
use lamina::sim::guest::{Guest, Program, program};
use lamina::sim::power::Exit;
use lamina_guest::deeds::Ended;
use lamina_guest::memory::{self, Reply};
use serde_json::json;
use tokio::sync::Notify;

use super::steps::{GET, PUT, answer};
use crate::common::eventually;
use crate::common::rig::{Rig, machine, ready, status};
use crate::common::unattended::{files, image, served, two_steps};

/// A first boot in which nobody helps; then a person sees to the step in its machine.
fn mended() -> Vec<Vec<Deed>> {
    vec![vec![Deed::Serve, Deed::PowerOff], vec![Deed::Serve, Deed::Skip("tools"), Deed::Finalize]]
}

/// An image in which `Setup.cmd` ends like this.
fn ending(ended: Ended) -> Image {
    let installers = move |_: &mut memory::State, deed: &memory::Deed| match deed {
        memory::Deed::Run(job) if job.args.contains("Setup.cmd") => Reply::Ended(ended),
        _any_other => Reply::Usual,
    };
    Image { tools: true, installers: Arc::new(installers) }
}

/// What waits for an answer that nobody gives looks the same from outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_hangs_or_crashes_is_told_as_what_it_did() {
    let rig = Rig::new().await;
    files(&rig).await;
    let _controller = rig.run().await;
    for (name, ended, state, code, words) in [
        ("hangs", Ended::TimedOut, StepState::TimedOut, None, "took longer than its timeout and was ended"),
        ("dies", Ended::Code(-1073741819), StepState::Failed, Some(-1073741819), "failed with exit code -1073741819"),
    ] {
        rig.guest(name, person_at(ending(ended), mended()));
        rig.layer(name, two_steps()).await;
        let asks = |l: &_| ready(l).is_some_and(|(r, m)| r == "FixStep" && m.contains("restartToken"));
        let asked = rig.until(name, "a halt after the step", asks).await;
        assert!(ready(&asked).is_some_and(|(_, m)| m.contains("'tools'") && m.contains(words)), "{asked:#?}");
        let states: Vec<_> = status(&asked).steps.iter().map(|s| (s.state, s.exit_code)).collect();
        assert_eq!(states, [(state, code), (StepState::Pending, None)]);
        rig.patch(name, json!({"machine": {"restartToken": "again"}, "finalize": {"approved": "1"}})).await;
        rig.until_finalized(name, "1").await;
    }
}

/// What its author lets pass is shown and holds nobody up; one who answers it is not asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_that_may_be_passed_over_is_shown_and_the_layer_goes_on() {
    let rig = Rig::new().await;
    files(&rig).await;
    let _controller = rig.run().await;
    for (name, ended, state, code) in
        [("fails", Ended::Code(5), StepState::Failed, Some(5)), ("hangs", Ended::TimedOut, StepState::TimedOut, None)]
    {
        rig.guest(name, person_at(ending(ended), vec![vec![Deed::Serve, Deed::Finalize]]));
        let mut more = two_steps();
        more["steps"][0]["onFailure"] = json!("Continue");
        more["finalize"] = json!({"approved": "1"});
        rig.layer(name, more).await;
        let done = rig.until_finalized(name, "1").await;
        let states: Vec<_> = status(&done).steps.iter().map(|s| (s.state, s.exit_code)).collect();
        assert_eq!(states, [(state, code), (StepState::Succeeded, Some(0))]);
    }
}

/// The machine restarts under whatever runs in its first boot, once somebody says so.
fn restarting(inner: Program, now: Arc<Notify>) -> Program {
    program(move |g: Guest| {
        let (inner, now) = (Arc::clone(&inner), Arc::clone(&now));
        async move {
            let restarts = async {
                match g.boot {
                    1 => now.notified().await,
                    _later => std::future::pending().await,
                }
            };
            tokio::select! {
                () = restarts => Exit::Reboot,
                exit = inner(g.clone()) => exit,
            }
        }
    })
}

/// Nobody knows how far it came: it is run again only where that was said to do no harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_restarts_the_machine_by_itself_is_run_again_only_if_it_may() {
    let rig = Rig::new().await;
    files(&rig).await;
    let _controller = rig.run().await;
    let boots = vec![vec![], mended().swap_remove(0), mended().swap_remove(1)];
    for (name, retry) in [("asks", false), ("again", true)] {
        let now = Arc::new(Notify::new());
        let mut boots = boots.clone();
        boots[0] = vec![Deed::Serve];
        if retry {
            boots[1] = vec![Deed::Serve, Deed::Finalize];
        }
        rig.guest(name, restarting(person_at(image(0), boots), Arc::clone(&now)));
        rig.sim.pool.clock.hold("guest/program");
        let mut more = two_steps();
        more["steps"][0]["retry"] = json!(retry);
        rig.layer(name, more).await;
        let runs = |l: &_| status(l).operation.is_some_and(|o| o.step == "RunStep tools");
        let vm = machine(&rig.until(name, "the first step", runs).await);
        let domid = async || rig.hands.machine(&vm).await.expect("M").row["domid"].clone();
        let first = domid().await;
        now.notify_one();
        // Nothing of its first boot goes on.
        eventually("the restart", async || (domid().await != first).then_some(())).await;
        rig.sim.pool.clock.unhold("guest/program");
        if !retry {
            let asks = |l: &_| ready(l).is_some_and(|(r, m)| r == "FixStep" && m.contains("restartToken"));
            let asked = rig.until(name, "a halt after the step", asks).await;
            assert!(ready(&asked).is_some_and(|(_, m)| m.contains("when the machine went down")), "{asked:#?}");
            assert_eq!(status(&asked).steps[0].state, StepState::Interrupted);
            rig.patch(name, json!({"machine": {"restartToken": "again"}})).await;
        }
        rig.patch(name, json!({"finalize": {"approved": "1"}})).await;
        let done = rig.until_finalized(name, "1").await;
        let first = if retry { StepState::Succeeded } else { StepState::Skipped };
        let states: Vec<_> = status(&done).steps.iter().map(|s| s.state).collect();
        assert_eq!(states, [first, StepState::Succeeded]);
    }
}

/// The service in it was killed, or hangs: xenstore keeps its last word. What it says next is believed again.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_says_nothing_for_too_long_is_a_persons() {
    let rig = Rig::new().await;
    rig.guest("silent", served());
    rig.sim.pool.clock.hold("guest/program");
    let _controller = rig.run().await;
    let step = |name: &str| json!({"name": name, "command": "rem", "timeout": "1s"});
    rig.layer("silent", json!({"steps": [step("one"), step("two")]})).await;
    rig.until_reason("silent", "RunningSteps").await;
    let asked = rig.until_reason("silent", "GuestSilent").await;
    assert!(ready(&asked).is_some_and(|(_, m)| m.contains("Reboot it from inside")), "{asked:#?}");
    let held = rig.sim.pool.clock.held("guest/program").await;
    rig.sim.pool.clock.release(held.id);
    rig.until("silent", "the next step", |l| ready(l).is_some_and(|(_, m)| m.contains("step 'two', 2 of 2"))).await;
    rig.sim.pool.clock.unhold("guest/program");
    rig.until_reason("silent", "ApproveFinalize").await;
}

/// The rule that fixes steps at the start reads the status, which tells of a start a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn steps_changed_during_the_start_are_told_and_a_person_answers() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("changed", served());
    rig.sim.pool.clock.hold("VM.start/domain");
    let _controller = rig.run().await;
    rig.layer("changed", two_steps()).await;
    rig.sim.pool.clock.held("VM.start/domain").await;
    let mut others = two_steps();
    others["steps"][1]["command"] = json!("rem something else");
    rig.patch("changed", json!({"steps": others["steps"], "finalize": {"approved": "1"}})).await;
    rig.sim.pool.clock.unhold("VM.start/domain");
    let asked = rig.until_reason("changed", "StepsUnknown").await;
    assert!(ready(&asked).is_some_and(|(_, m)| m.contains("of other steps than the layer has now")), "{asked:#?}");
    assert_eq!((rig.calls(PUT), rig.calls(GET)), (1, 1), "a disk that the machine saw is not written again");
    rig.patch("changed", answer(&asked)).await;
    rig.until_finalized("changed", "1").await;
    rig.hands.assert_tidy().await;
}
