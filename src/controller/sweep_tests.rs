//! Small pools with something lying about in them.

use serde_json::json;

use super::*;
use crate::controller::inspect::tests::{r, table, vdi};
use crate::domain::identity::{Lineage, MAKING};
use crate::xapi::model::{Map, Task};

fn layer(uid: &str, status: serde_json::Value) -> DeserializeGuard<PlatformLayer> {
    let layer = json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": uid, "uid": uid},
        "spec": {
            "version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"},
            "osLayer": {"name": "Windows", "version": "24H2", "disk": {"name": "win11"}},
        },
        "status": status,
    });
    DeserializeGuard(Ok(serde_json::from_value(layer).unwrap()))
}

fn lineage(layer: &str, role: Role) -> Lineage {
    Lineage::Layer { cluster: "c".into(), layer: layer.into(), version: "1".into(), role }
}

fn ours(uuid: &str, layer: &str, role: Role, parent: &str) -> Vdi {
    let other_config = lineage(layer, role).keys(uuid, Some("s"), &[]);
    Vdi { other_config, ..in_tree(uuid, &format!("Lamina {uuid}"), parent) }
}

fn in_tree(uuid: &str, name: &str, parent: &str) -> Vdi {
    let sm_config = Map::from([("vhd-parent".to_owned(), parent.to_owned())]);
    Vdi { sm_config, virtual_size: 3 << 30, ..vdi(uuid, name, "sr") }
}

/// The OS disk `os`, its base `s`, both below the hidden node `b`.
fn tree() -> Vec<Vdi> {
    let lineage = Lineage::Base { cluster: "c".into(), sr: "sr".into(), os: "os".into(), os_version: "24H2".into() };
    let base =
        Vdi { other_config: lineage.keys("s", None, &[]), is_a_snapshot: true, ..in_tree("s", "Lamina base", "b") };
    vec![in_tree("os", "win11", "b"), base, Vdi { managed: false, ..vdi("b", "base copy", "sr") }]
}

fn swept(more: Vec<Vdi>, layers: &[DeserializeGuard<PlatformLayer>]) -> (Vec<String>, usize) {
    let vdis = tree().into_iter().chain(more).collect();
    let view = View { vdis: table(vdis), ..View::default() };
    let swept = sweep(&view, "c", &Known::of(layers));
    (swept.unclaimed.into_iter().map(|left| left.uuid).collect(), swept.retained)
}

fn none() -> (Vec<String>, usize) {
    (vec![], 0)
}

fn one(uuid: &str) -> (Vec<String>, usize) {
    (vec![uuid.to_owned()], 0)
}

#[test]
fn disks_of_living_layers_are_no_news_and_those_of_others_are() {
    let living = [layer("l", json!({}))];
    assert_eq!(swept(vec![ours("w", "l", Role::Work, "b")], &living), none());
    assert_eq!(swept(vec![ours("w", "gone", Role::Work, "b")], &living), one("w"));
    // A layer that cannot be read is still there.
    let broken = kube::core::error_boundary::InvalidObject { error: "odd".into(), metadata: living[0].meta().clone() };
    assert_eq!(
        swept(vec![ours("w", "l", Role::Work, "b")], &[DeserializeGuard(Err(broken)), layer("x", json!({}))]),
        none()
    );
    let foreign = Vdi {
        other_config: Lineage::Layer {
            cluster: "other".into(),
            layer: "gone".into(),
            version: "1".into(),
            role: Role::Work,
        }
        .keys("w", Some("s"), &[]),
        ..in_tree("w", "", "b")
    };
    assert_eq!(swept(vec![foreign], &living), none());
}

#[test]
fn retained_versions_are_counted_apart() {
    let mut kept = ours("f", "gone", Role::Frozen, "b");
    kept.other_config.insert(RETAINED.into(), "true".into());
    assert_eq!(swept(vec![kept], &[layer("l", json!({}))]), (vec![], 1));
}

#[test]
fn a_base_that_nobody_needs_is_told() {
    let other = |os: &str| {
        let DeserializeGuard(Ok(mut layer)) = layer("l", json!({})) else { panic!() };
        layer.spec.os_layer.disk.name = Some(os.to_owned());
        [DeserializeGuard(Ok(layer))]
    };
    assert_eq!(swept(vec![], &other("win11")), none(), "wanted by name");
    assert_eq!(swept(vec![], &other("another")), one("s"));
    assert_eq!(swept(vec![ours("w", "l", Role::Work, "b")], &other("another")), none(), "stood on");
}

#[test]
fn a_child_in_the_making_is_left_in_peace_until_nobody_makes_it() {
    let lineage = lineage("l", Role::Work);
    let mark = |mut vdi: Vdi| {
        vdi.other_config.insert(MAKING.into(), lineage.mark().to_string());
        vdi
    };
    // A clone of the base, which has inherited its keys and the mark.
    let child = || mark(Vdi { other_config: tree().remove(1).other_config, ..in_tree("child", "", "b") });
    let at_work = layer("l", json!({"operation": {"step": "CloneDisk", "opid": lineage.opid().0}}));
    assert_eq!(swept(vec![child()], &[at_work]), none());
    assert_eq!(swept(vec![child()], &[layer("l", json!({}))]), one("child"));
    // The mark alone is on the source: a user's disk, of which nobody must say that it may be deleted.
    assert_eq!(swept(vec![mark(vdi("os2", "win11", "sr"))], &[layer("l", json!({}))]), none());
}

#[test]
fn keyless_disks_in_our_trees_are_strays_only_as_a_restart_leaves_them() {
    let living = [layer("l", json!({}))];
    let stray = |change: fn(&mut Vdi)| {
        let mut vdi = in_tree("stray", "", "b");
        change(&mut vdi);
        swept(vec![vdi], &living)
    };
    assert_eq!(stray(|_| ()), one("stray"));
    assert_eq!(stray(|v| v.name_label = "win11".into()), one("stray"), "named like its source");
    assert_eq!(stray(|v| drop(v.other_config.insert("content_id".into(), "x".into()))), one("stray"));
    assert_eq!(stray(|v| v.name_label = "Anna's copy".into()), none());
    assert_eq!(stray(|v| v.vbds = vec![r("vbd")]), none(), "some machine has it");
    assert_eq!(stray(|v| v.is_a_snapshot = true), none(), "somebody's snapshot");
    assert_eq!(stray(|v| drop(v.other_config.insert("theirs".into(), "x".into()))), none());
    assert_eq!(stray(|v| drop(v.sm_config.insert("vhd-parent".into(), "elsewhere".into()))), none());
}

#[test]
fn machines_of_layers_that_are_gone_and_clones_that_died_are_told() {
    let vm = |uuid: &str, other_config| Vm { uuid: uuid.into(), other_config, ..Vm::default() };
    let keys = |layer: &str, uuid: &str| lineage(layer, Role::Machine).keys(uuid, None, &[("lamina.dev/nonce", "n")]);
    let half = Vm { name_label: "lamina-0123456789abcdef".into(), is_a_template: true, ..vm("half", Map::new()) };
    let vms = table(vec![vm("m1", keys("l", "m1")), vm("m2", keys("gone", "m2")), half]);
    let known = Known::of(&[layer("l", json!({}))]);
    let found = |view: &View| sweep(view, "c", &known).unclaimed.into_iter().map(|left| left.uuid).collect::<Vec<_>>();
    let mut view = View { vms, ..View::default() };
    assert_eq!(found(&view), ["half", "m2"]);
    let tag = Map::from([(TASK_TAG.to_owned(), "0123456789abcdef".to_owned())]);
    view.tasks = table(vec![Task { uuid: "t".into(), other_config: tag, ..Task::default() }]);
    assert_eq!(found(&view), ["m2"], "it is still being made");
}

#[test]
fn the_time_at_which_something_was_first_seen_stays() {
    let view = View { vdis: table(vec![ours("w", "gone", Role::Work, "b")]), ..View::default() };
    let swept = sweep(&view, "c", &Known::default());
    let at = |text: &str| Time(text.parse().unwrap());
    let first = swept.words("", &at("2026-11-22T10:00:00Z"));
    assert!(first.contains("disk w 'Lamina w' (3 GiB, first seen 2026-11-22T10:00:00Z)"), "{first}");
    assert_eq!(swept.words(&first, &at("2026-11-23T10:00:00Z")), first);
}

#[test]
fn what_was_seen_for_a_moment_only_is_not_told() {
    let left = |uuid: &str| Leftover { kind: "disk", uuid: uuid.into(), name: String::new(), size: None, made: None };
    let (mut since, start, long) = (HashMap::new(), Instant::now(), Duration::from_secs(60));
    let mut told = |uuids: &[&str], before: &str, after: u64| {
        let mut swept = Swept { unclaimed: uuids.iter().map(|uuid| left(uuid)).collect(), ..Swept::default() };
        swept.ripen(&mut since, before, start + Duration::from_secs(after), long);
        (swept.unclaimed.into_iter().map(|left| left.uuid).collect::<Vec<_>>(), swept.unripe)
    };
    assert_eq!(told(&["a", "b"], "", 0), (vec![], true));
    assert_eq!(told(&["a"], "", 59), (vec![], true), "b was claimed meanwhile");
    assert_eq!(told(&["a", "b"], "", 60), (vec!["a".to_owned()], true), "b anew");
    // After a restart of the controller the condition remembers.
    assert_eq!(told(&["a", "c"], "disk c was told", 61), (vec!["a".to_owned(), "c".to_owned()], false));
}

/// An empty disk that a new xapi made a second time bears the name of its operation, and nothing else.
#[test]
fn a_disk_that_was_made_twice_is_told_once_nobody_is_at_it() {
    let again = vdi("again", "lamina-0123456789abcdef", "sr");
    assert_eq!(swept(vec![again.clone()], &[layer("l", json!({}))]), one("again"));
    let at_it = layer("l", json!({"operation": {"step": "CreateConfigDisk", "opid": "0123456789abcdef"}}));
    assert_eq!(swept(vec![again], &[at_it]), none());
    assert_eq!(swept(vec![vdi("theirs", "lamina-archive", "sr")], &[layer("l", json!({}))]), none());
}
