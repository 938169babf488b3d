//! Changes of small pools, and whom they wake.

use serde_json::json;

use super::*;
use crate::controller::inspect::tests::{r, table, vdi};
use crate::domain::identity::TASK_TAG;
use crate::xapi::model::{Map, Pbd, PowerState, Task, TaskStatus, Vif};

fn layer(uid: &str, status: serde_json::Value) -> PlatformLayer {
    serde_json::from_value(json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": uid, "uid": uid},
        "spec": {
            "version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"},
            "osLayer": {"name": "Windows", "version": "24H2", "disk": {"name": "win11"}},
        },
        "status": status,
    }))
    .unwrap()
}

fn keys(key: &str, value: &str) -> Map {
    Map::from([(key.to_owned(), value.to_owned())])
}

fn diff<T: Clone>(uuid: &str, old: T, new: T) -> Diff<T> {
    Diff { reference: r(uuid), old: Some(Arc::new(old)), new: Some(Arc::new(new)) }
}

fn nobody(_op: &str, _task: &Ref) -> Option<String> {
    None
}

/// Which of the layers `a` (finalized) and `b` (at operation `op`) wake, and whether the Connector does.
fn woken(change: Change, view: &View) -> (Vec<&'static str>, bool) {
    let wakes = Wakes::of(&[change], view, &nobody);
    let a = layer("a", json!({"phase": "Finalized"}));
    let b = layer("b", json!({"phase": "Pending", "operation": {"step": "CloneDisk", "opid": "op"}}));
    let layers = [("a", a), ("b", b)];
    (layers.into_iter().filter(|(_, layer)| wakes.concern(layer)).map(|(name, _)| name).collect(), wakes.connector)
}

#[test]
fn keys_and_marks_wake_their_layers_alone() {
    let of = |keys: Map| Vdi { other_config: keys, ..vdi("d", "a disk", "sr") };
    let plain = View::default();
    assert_eq!(
        woken(Change::Vdi(diff("d", of(keys(LAYER, "a")), of(Map::new()))), &plain).0,
        ["a"],
        "keys of old count too"
    );
    let marked = of(keys("lamina.dev/making", "cluster/b/op"));
    assert_eq!(woken(Change::Vdi(diff("d", marked.clone(), marked)), &plain).0, ["b"]);
    let vm =
        |name: &str, keys: Map| Vm { uuid: "m".into(), name_label: name.into(), other_config: keys, ..Vm::default() };
    assert_eq!(woken(Change::Vm(diff("m", vm("x", keys(LAYER, "a")), vm("y", keys(LAYER, "a")))), &plain).0, ["a"]);
    let clone = Vm { is_a_template: true, ..vm("lamina-op", Map::new()) };
    assert_eq!(
        woken(Change::Vm(diff("m", clone.clone(), clone)), &plain).0,
        ["b"],
        "a machine in the making is no template"
    );
    let view = View { vms: table(vec![Vm { is_a_template: true, ..vm("lamina-op", Map::new()) }]), ..View::default() };
    let vif = Vif { uuid: "v".into(), vm: r("m"), ..Vif::default() };
    assert_eq!(woken(Change::Vif(Diff { reference: r("v"), old: None, new: Some(Arc::new(vif)) }), &view).0, [""; 0]);
}

#[test]
fn metrics_and_drives_lead_to_their_machine() {
    let view = View {
        vms: table(vec![Vm { uuid: "m".into(), other_config: keys(LAYER, "a"), ..Vm::default() }]),
        vdis: table(vec![Vdi { other_config: keys(LAYER, "b"), ..vdi("d", "", "sr") }]),
        ..View::default()
    };
    let metrics = Diff { reference: r("x"), old: None, new: None };
    assert_eq!(woken(Change::VmMetrics { vm: Some(r("m")), diff: metrics }, &view), (vec!["a"], false));
    let vbd = Vbd { uuid: "v".into(), vm: r("m"), vdi: r("d"), ..Vbd::default() };
    assert_eq!(
        woken(Change::Vbd(Diff { reference: r("v"), old: None, new: Some(Arc::new(vbd)) }), &view).0,
        ["a", "b"]
    );
}

#[test]
fn tasks_wake_whoever_is_at_the_operation() {
    let task = |tag: &str| Task { uuid: "t".into(), other_config: keys(TASK_TAG, tag), ..Task::default() };
    let woken = |tag: &str| woken(Change::Task(diff("t", task(tag), task(tag))), &View::default());
    assert_eq!(woken("op"), (vec!["b"], false));
    assert_eq!(woken("op.resize"), (vec!["b"], false));
    assert_eq!(woken("another").0, Vec::<&str>::new(), "neither the finalized one nor one at another operation");
}

/// Hundreds of machines may be running, and each call on the pool makes a handful of events.
#[test]
fn the_tasks_of_others_wake_no_layer_without_an_intent() {
    let tagged =
        |status| Task { uuid: "t".into(), status, other_config: keys(TASK_TAG, "own.insert"), ..Task::default() };
    let begun = || Change::Task(diff("t", tagged(TaskStatus::Pending), tagged(TaskStatus::Success)));
    let running = |uid| layer(uid, json!({"phase": "MachineRunning", "machine": {"uuid": uid}}));
    let woken = |wakes: &Wakes| [running("c"), running("d")].map(|layer| wakes.concern(&layer));
    let plain = View::default();
    assert_eq!(woken(&Wakes::of(&[begun()], &plain, &nobody)), [true, true], "it may be anybody's");
    let bearer =
        Vm { uuid: "m".into(), other_config: Map::from([(OP, "own"), (LAYER, "c")].map(owned)), ..Vm::default() };
    let view = View { vms: table(vec![bearer]), ..View::default() };
    assert_eq!(woken(&Wakes::of(&[begun()], &view, &nobody)), [true, false], "the machine says whose it is");
    let known = |op: &str, task: &Ref| (op == "own" && *task == r("t")).then(|| "d".to_owned());
    assert_eq!(woken(&Wakes::of(&[begun()], &plain, &known)), [false, true], "who began it is known");
    let gone = Diff { reference: r("t"), old: Some(Arc::new(tagged(TaskStatus::Success))), new: None };
    assert_eq!(woken(&Wakes::of(&[Change::Task(gone)], &plain, &nobody)), [false, false], "its end was told");
    let claimed = Vm { name_label: "lamina-own".into(), other_config: keys(LAYER, "c"), ..Vm::default() };
    let named = Change::Vm(diff("m", claimed.clone(), Vm { name_label: "c".into(), ..claimed }));
    assert_eq!(woken(&Wakes::of(&[named], &plain, &nobody)), [true, false], "a claimed machine is its layer's");
    let scan = Task { other_config: keys(TASK_TAG, "own.scan"), ..tagged(TaskStatus::Success) };
    let scanned = Change::Task(diff("t", tagged(TaskStatus::Pending), scan));
    assert_eq!(woken(&Wakes::of(&[scanned], &view, &nobody)), [true, true], "others may wait for it");
    let os = vdi("os", "win11", "sr");
    let changed = Change::Vdi(diff("os", os.clone(), Vdi { sharable: true, ..os }));
    assert_eq!(woken(&Wakes::of(&[changed], &plain, &nobody)), [false, false], "who has its machine needs it no more");
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn nobodys_doings_wake_a_layer_that_waits_for_a_slot() {
    let ready = json!({
        "type": "Ready", "status": "False", "reason": "WaitingForSlot", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let waiting = layer("c", json!({"phase": "Pending", "conditions": [ready]}));
    let task = Task { uuid: "t".into(), other_config: keys(TASK_TAG, "op"), ..Task::default() };
    let os = vdi("os", "win11", "sr");
    let busy = [Change::Task(diff("t", task.clone(), task)), Change::Vdi(diff("os", os.clone(), os))];
    let wakes = Wakes::of(&busy, &View::default(), &nobody);
    assert!(!wakes.concern(&waiting));
    assert!(wakes.concern(&layer("d", json!({"phase": "Pending"}))), "it may be its own task");
    assert!(Wakes::everybody().concern(&waiting));
}

#[test]
fn an_os_disk_wakes_those_who_want_it_and_so_does_its_machine() {
    let os = vdi("os", "win11", "sr");
    assert_eq!(
        woken(Change::Vdi(diff("os", os.clone(), Vdi { sharable: true, ..os.clone() })), &View::default()),
        (vec!["b"], true)
    );
    let vm = |power_state| Vm { uuid: "m".into(), power_state, vbds: vec![r("v")], ..Vm::default() };
    let view = View {
        vdis: table(vec![os]),
        vbds: table(vec![Vbd { uuid: "v".into(), vm: r("m"), vdi: r("os"), ..Vbd::default() }]),
        ..View::default()
    };
    assert_eq!(
        woken(Change::Vm(diff("m", vm(PowerState::Running), vm(PowerState::Halted))), &view),
        (vec!["b"], false)
    );
}

#[test]
fn the_pools_parts_wake_everybody_and_storage_at_work_only_those_who_wait_for_its_end() {
    let pbd = |currently_attached| Pbd { uuid: "p".into(), currently_attached, ..Pbd::default() };
    let view = View::default();
    assert_eq!(woken(Change::Pbd(diff("p", pbd(true), pbd(false))), &view), (vec!["a", "b"], true));
    assert_eq!(woken(Change::Relisted, &view), (vec!["a", "b"], true));
    let sr = |ops: Map, name: &str| Sr {
        uuid: "s".into(),
        current_operations: ops,
        name_label: name.into(),
        ..Sr::default()
    };
    let busy = woken(Change::Sr(diff("s", sr(Map::new(), "x"), sr(keys("t", "vdi_clone"), "x"))), &view);
    assert_eq!(busy, (vec![], true));
    let ready = json!([{"type": "Ready", "status": "False", "reason": "WaitingForInFlight", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let testing =
        layer("c", json!({"phase": "Pending", "operation": {"step": "CloneDisk", "opid": "op"}, "conditions": ready}));
    let quiet = Change::Sr(diff("s", sr(keys("t", "vdi_clone"), "x"), sr(Map::new(), "x")));
    assert!(Wakes::of(&[quiet], &view, &nobody).concern(&testing), "it waits for storage to be quiet");
    assert_eq!(woken(Change::Sr(diff("s", sr(Map::new(), "x"), sr(Map::new(), "y"))), &view), (vec!["a", "b"], true));
    let template = |name: &str| Vm { uuid: "t".into(), is_a_template: true, name_label: name.into(), ..Vm::default() };
    assert_eq!(woken(Change::Vm(diff("t", template("x"), template("y"))), &view), (vec!["a", "b"], true));
    let cloning = Vm { current_operations: keys("t", "clone"), ..template("x") };
    assert_eq!(woken(Change::Vm(diff("t", template("x"), cloning)), &view), (vec![], false));
}
