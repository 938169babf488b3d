//! Who says that a version may be frozen, and what a halted machine waits for.

use lamina::api::{ConditionType, Phase};
use lamina::demo::person::{Check, Deed, person};
use serde_json::json;

use crate::common::rig::{Rig, quick, ready, says, status};

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_counts_only_for_its_version_and_may_come_early() {
    let rig = Rig::new().await;
    rig.guest("early", quick());
    rig.guest("stale", quick());
    let _controller = rig.run().await;
    rig.layer("early", json!({"finalize": {"approved": "1"}})).await;
    rig.layer("stale", json!({"finalize": {"approved": "0"}})).await;
    rig.until_finalized("early", "1").await;
    let waits = rig.until_reason("stale", "ApproveFinalize").await;
    assert!(ready(&waits).is_some_and(|(_, m)| m.contains("finalize.approved is '0'")), "{waits:?}");
    assert_eq!(says(&waits, ConditionType::ActionRequired), "True/ApproveFinalize");
    assert_eq!(says(&waits, ConditionType::Reconciling), "-");
    rig.approve("stale", "1").await;
    rig.until_finalized("stale", "1").await;
    // The approval of version 1 says nothing of version 2.
    rig.patch("early", json!({"version": "2"})).await;
    rig.until_reason("early", "ApproveFinalize").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_shutdown_needs_a_report_that_counts_whatever_the_policy() {
    let rig = Rig::new().await;
    rig.guest("good", quick());
    rig.guest("silent", person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::PowerOff]]));
    let _controller = rig.run().await;
    rig.layer("good", json!({"finalize": {"policy": "OnShutdown"}})).await;
    rig.layer("silent", json!({"finalize": {"policy": "OnShutdown"}, "integrity": "Skip"})).await;
    rig.until_finalized("good", "1").await;
    let waits = rig.until_reason("silent", "ApproveFinalize").await;
    assert!(ready(&waits).is_some_and(|(_, m)| m.contains("without a report")), "{waits:?}");
    assert_eq!(says(&waits, ConditionType::IntegrityVerified), "Unknown/Skipped");
    rig.approve("silent", "1").await;
    rig.until_finalized("silent", "1").await;
    rig.hands.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enforce_blocks_on_a_finding_warn_shows_it_and_the_bypass_always_blocks() {
    let rig = Rig::new().await;
    let found = |bits| {
        let check = Check { block_finalize: bits, ..Check::default() };
        person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::Report(check), Deed::PowerOff]])
    };
    rig.guest("enforce", found(64));
    rig.guest("warn", found(64));
    rig.guest("skip", found(64));
    rig.guest("bypass", found(1));
    let _controller = rig.run().await;
    for (name, integrity) in [("enforce", "Enforce"), ("warn", "Warn"), ("skip", "Skip"), ("bypass", "Warn")] {
        rig.layer(name, json!({"integrity": integrity, "finalize": {"approved": "1"}})).await;
    }
    for (name, finding) in [("enforce", "NGenNeeded"), ("bypass", "BypassEnabled")] {
        let blocked = rig
            .until(name, "halted and blocked", |l| {
                ready(l).is_some_and(|(r, m)| r == "FixIntegrity" && m.contains(finding) && m.contains("restartToken"))
            })
            .await;
        assert_eq!(status(&blocked).phase, Some(Phase::AwaitingFinalize));
        assert_eq!(says(&blocked, ConditionType::IntegrityVerified), "False/FindingsOpen");
    }
    for name in ["warn", "skip"] {
        let done = rig.until_finalized(name, "1").await;
        let findings = status(&done).integrity.expect("a verdict").findings;
        assert_eq!(findings.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>(), ["NGenNeeded"], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_guest_waits_for_a_person_unless_skipped() {
    let rig = Rig::new().await;
    for name in ["enforced", "warned"] {
        rig.guest(name, person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::PowerOff]]));
    }
    let _controller = rig.run().await;
    rig.layer("enforced", json!({"finalize": {"approved": "1"}})).await;
    rig.layer("warned", json!({"finalize": {"approved": "1"}, "integrity": "Warn"})).await;
    for name in ["enforced", "warned"] {
        let waits = rig.until_reason(name, "FixIntegrity").await;
        assert!(ready(&waits).is_some_and(|(_, m)| m.contains("no report") && m.contains("restartToken")), "{waits:?}");
        assert_eq!(says(&waits, ConditionType::IntegrityVerified), "Unknown/IntegrityUnknown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kms_is_judged_where_asked() {
    let rig = Rig::new().await;
    let checked = |before, rearmed| {
        let check = Check { rearms_before: before, rearmed, ..Check::default() };
        person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::Report(check), Deed::PowerOff]])
    };
    rig.guest("none", checked(Some(0), false));
    rig.guest("forgot", checked(Some(3), false));
    rig.guest("unsaid", checked(None, false));
    rig.guest("last", checked(Some(1), true));
    let _controller = rig.run().await;
    for name in ["none", "forgot", "unsaid", "last"] {
        let spec = json!({
            "purpose": "Publishing", "kms": {"rearm": true}, "finalize": {"approved": "1"}, "integrity": "Warn",
            "platforms": {"provisioningService": "PVS", "connectionBroker": "XenDesktop"},
        });
        rig.layer(name, spec).await;
    }
    for (name, reason) in [("none", "NoRearmsLeft"), ("forgot", "NotRearmed"), ("unsaid", "NotRearmed")] {
        let blocked = rig.until_reason(name, "FixIntegrity").await;
        assert!(ready(&blocked).is_some_and(|(_, m)| m.contains(reason)), "{blocked:?}");
    }
    let done = rig.until_finalized("last", "1").await;
    assert_eq!(status(&done).versions[0].rearms_left, Some(0), "the count after may be 0");
}
