//! Rights, compared with the calls that are made; the words for a pool that cannot be seen; the inventory.

use std::collections::HashSet;

use super::*;
use crate::controller::inspect::tests::table;
use crate::xapi::model::{Network, Vm};
use crate::xapi::wire::Failure;

/// What `xapi::calls` sends through the doors for changes: `"Class.method"` in its tables and beside its two constructors.
fn changing_calls() -> HashSet<String> {
    let source = include_str!("../xapi/calls.rs");
    let (_, doors) = source.split_once("impl Write<'_> {").expect("the doors");
    let quoted = doors.split('"').skip(1).step_by(2);
    quoted
        .filter(|text| text.contains('.') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b)))
        .map(str::to_lowercase)
        .collect()
}

#[test]
fn every_changing_call_is_a_right_that_is_asked_for() {
    let asked: HashSet<String> = NEEDED.iter().chain(&WISHED).map(|right| (*right).to_owned()).collect();
    let mut calls = changing_calls();
    // Anybody may cancel and destroy tasks of his own session's account.
    calls.retain(|call| !call.starts_with("task."));
    assert_eq!(asked.difference(&calls).collect::<Vec<_>>(), Vec::<&String>::new(), "asked for, but never used");
    assert_eq!(calls.difference(&asked).collect::<Vec<_>>(), Vec::<&String>::new(), "used, but never asked for");
}

#[test]
fn rights_are_judged_by_what_is_missing() {
    let judged = |granted: &[&str]| {
        let mut outcome = Outcome::default();
        outcome.rights(&Rights::These(granted.iter().map(|g| (*g).to_owned()).collect()));
        outcome
    };
    assert_eq!(judged(&[]).failure(), Some(Reason::PermissionDenied));
    let most = judged(&NEEDED);
    assert_eq!(most.failure(), Some(Reason::PoolOperatorMissing));
    assert!(most.is_ready(), "it works without");
    assert_eq!(judged(&[NEEDED.as_slice(), &WISHED].concat()).failure(), None);
    let mut root = Outcome::default();
    root.rights(&Rights::All);
    assert_eq!(root.failure(), None);
}

#[test]
fn a_pool_that_cannot_be_seen_is_told_by_the_first_check_that_fails() {
    let told = |error: Error| {
        let mut outcome = Outcome::default();
        outcome.lost(&error, &Tls::SystemRoots, "lab");
        let (check, trouble) = outcome.failed.expect("a failure");
        (check.expect("a check"), trouble.reason)
    };
    let api = |code: &str| Error::Api(Failure::new(code, ["root", "text"]));
    let tls = || Error::Tls { endpoint: "https://x".into(), problem: TlsProblem::Expired };
    let behind = |source: Error| Error::NoCoordinator { named: "https://y".into(), source: Box::new(source) };
    for (error, check, reason) in [
        (api("SESSION_AUTHENTICATION_FAILED"), C::Authenticated, Reason::CredentialsRefused),
        (api("INTERNAL_ERROR"), C::CoordinatorFound, Reason::PoolError),
        (tls(), C::Reachable, Reason::CertificateUntrusted),
        // Its certificate is what must be mended, wherever it was met.
        (behind(tls()), C::Reachable, Reason::CertificateUntrusted),
        (
            behind(Error::Status { endpoint: "https://y".into(), status: 500 }),
            C::CoordinatorFound,
            Reason::CoordinatorUnknown,
        ),
        (Error::Status { endpoint: "https://x".into(), status: 404 }, C::Reachable, Reason::NotXenServer),
    ] {
        assert_eq!(told(error.clone()), (check, reason), "{error:?}");
    }
    let mut outcome = Outcome::default();
    outcome.lost(&Error::Config("the CA bundle holds no certificate".into()), &Tls::CaBundle(vec![]), "lab");
    assert_eq!(outcome.failure(), Some(Reason::CABundleInvalid));
}

#[test]
fn the_inventory_is_sorted_capped_and_without_machines_in_the_making() {
    let vm = |n: usize| Vm {
        uuid: format!("u{n}"),
        name_label: format!("t{:03}", 999 - n),
        is_a_template: true,
        ..Vm::default()
    };
    let mut vms: Vec<Vm> = (0..MAX_INVENTORY + 5).map(vm).collect();
    vms.push(Vm {
        uuid: "m".into(),
        name_label: "lamina-0123456789abcdef".into(),
        is_a_template: true,
        ..Vm::default()
    });
    vms.push(Vm {
        uuid: "d".into(),
        name_label: "a".into(),
        is_a_template: true,
        is_default_template: true,
        ..Vm::default()
    });
    let internal = Map::from([("is_host_internal_management_network".to_owned(), "true".to_owned())]);
    let network = |uuid: &str, other_config| Network {
        uuid: uuid.into(),
        name_label: uuid.into(),
        other_config,
        ..Network::default()
    };
    let view = View {
        vms: table(vms),
        networks: table(vec![network("lan", Map::new()), network("internal", internal)]),
        ..View::default()
    };
    let inventory = inventory(&view);
    assert_eq!(inventory.templates.len(), MAX_INVENTORY);
    assert_eq!(inventory.templates.first().map(|t| t.name.as_str()), Some("t795"));
    assert!(inventory.templates.is_sorted());
    assert_eq!(inventory.networks.iter().map(|n| n.uuid.as_str()).collect::<Vec<_>>(), ["lan"]);
}
