//! Storage: order of fields, queue, checks, trees, room.

use lamina::sim::{clock::Clock, disk::pattern};
use serde_json::{Value, json};

use super::{brisk, pool};
use crate::wire::{Outcome, Raw, failure};

async fn os(raw: &Raw) -> String {
    raw.named("VDI", "win11-24h2").await
}

/// The disks that share a tree with the OS disk, by their parent: rows that a clone or snapshot has made so far.
async fn fresh(raw: &Raw, known: &[String]) -> Vec<(String, Value)> {
    let all = raw.call("VDI.get_all_records", json!([])).await.unwrap();
    let all = all.as_object().unwrap().clone().into_iter();
    all.filter(|(r, row)| !known.contains(r) && row["managed"] == json!(true)).collect()
}

async fn known(raw: &Raw) -> Vec<String> {
    serde_json::from_value(raw.call("VDI.get_all", json!([])).await.unwrap()).unwrap()
}

/// xapi.md 14, "Order of a child's fields" and "Queue": each stage is seen by itself.
#[tokio::test]
async fn a_snapshot_shows_each_of_its_stages() {
    let raw = pool(Clock::new(50.0)).await;
    let clock = &raw.sim.pool.clock;
    let source = os(&raw).await;
    raw.call("VDI.add_to_other_config", json!([source, "k", "v"])).await.unwrap();
    raw.call("VDI.add_to_other_config", json!([source, "leaf-coalesce", "false"])).await.unwrap();
    raw.call("VDI.add_tags", json!([source, "t"])).await.unwrap();
    let before = known(&raw).await;
    clock.hold("VDI.snapshot/");
    let task = raw.send_async("VDI.snapshot", json!([source])).await;
    let step = async |stage: &str| clock.held(&format!("VDI.snapshot/{stage}")).await.id;
    let child = async || fresh(&raw, &before).await.into_iter().find(|(_, row)| row["name_label"] != "base copy");

    let id = step("queued").await;
    assert_eq!(raw.get("VDI", &source, "current_operations").await, json!({}), "a waiting call shows nowhere");
    clock.release(id);
    let id = step("running").await;
    assert_eq!(raw.get("VDI", &source, "current_operations").await[&task], "snapshot");
    let sr = raw.get("VDI", &source, "SR").await;
    assert_eq!(raw.get("SR", sr.as_str().unwrap(), "current_operations").await[&task], "vdi_snapshot");
    assert!(child().await.is_none());
    clock.release(id);
    let id = step("base").await;
    let base = fresh(&raw, &before).await.remove(0).1;
    assert_eq!((&base["name_label"], &base["managed"]), (&json!("base copy"), &json!(true)), "managed for a moment");
    clock.release(id);
    let id = step("row").await;
    let row = child().await.unwrap().1;
    assert_eq!((&row["name_label"], &row["other_config"], &row["tags"]), (&json!(""), &json!({}), &json!([])));
    assert_eq!((&row["is_a_snapshot"], &row["snapshot_of"]), (&json!(false), &json!("OpaqueRef:NULL")));
    assert!(row["allowed_operations"].as_array().unwrap().contains(&json!("destroy")));
    clock.release(id);
    let id = step("named").await;
    let row = child().await.unwrap().1;
    assert_eq!((&row["name_label"], &row["is_a_snapshot"]), (&json!("win11-24h2"), &json!(true)));
    assert_eq!(row["other_config"].as_object().unwrap().keys().collect::<Vec<_>>(), ["content_id"]);
    clock.release(id);
    let id = step("keyed").await;
    let row = child().await.unwrap().1;
    assert_eq!(row["other_config"], json!({"k": "v"}), "without leaf-coalesce");
    assert_eq!(row["tags"], json!([]));
    clock.release(id);
    let id = step("tagged").await;
    let row = child().await.unwrap().1;
    assert_eq!((&row["tags"], &row["snapshot_of"]), (&json!(["t"]), &json!("OpaqueRef:NULL")));
    clock.release(id);
    let id = step("linked").await;
    assert_eq!(child().await.unwrap().1["snapshot_of"], json!(source));
    assert_eq!(raw.get("task", &task, "status").await, "pending");
    clock.release(id);
    raw.wait(&task).await.unwrap();
    assert_eq!(raw.get("VDI", &source, "current_operations").await, json!({}));
}

/// xapi.md 14, Queue and Tasks: one at a time per SR; a queued call can be cancelled, a running one goes on.
#[tokio::test]
async fn storage_calls_wait_for_one_another_and_only_queued_ones_are_cancelled() {
    let raw = brisk().await;
    let clock = &raw.sim.pool.clock;
    let source = os(&raw).await;
    for prefix in ["VDI.clone/running", "VDI.snapshot/queued", "VDI.set_name_label/queued"] {
        clock.hold(prefix);
    }
    let first = raw.send_async("VDI.clone", json!([source])).await;
    let held = clock.held("VDI.clone/running").await;
    let waiting = raw.send_async("VDI.snapshot", json!([source])).await;
    let rename = raw.send_async("VDI.set_name_label", json!([source, "renamed"])).await;
    raw.call("VDI.add_to_other_config", json!([source, "free", "yes"])).await.unwrap();
    for prefix in ["VDI.snapshot/queued", "VDI.set_name_label/queued"] {
        clock.held(prefix).await;
        clock.unhold(prefix);
    }
    // Another repository has a queue of its own: what is done there was begun later.
    let local = raw.named("SR", "Local storage on host1").await;
    raw.run("SR.scan", json!([local])).await.unwrap();
    for task in [&waiting, &rename] {
        assert_eq!(raw.get("task", task, "status").await, "pending");
    }
    assert_eq!(raw.get("VDI", &source, "name_label").await, "win11-24h2");
    for task in [&first, &waiting] {
        raw.call("task.cancel", json!([task])).await.unwrap();
    }
    assert_eq!(raw.wait(&waiting).await, failure(["TASK_CANCELLED", &waiting]));
    clock.unhold("VDI.clone/running");
    assert!(!clock.release(held.id));
    raw.wait(&first).await.unwrap();
    raw.wait(&rename).await.unwrap();
    assert_eq!(raw.get("VDI", &source, "name_label").await, "renamed");
}

/// xapi.md 4.3: the first test that fails is the one that is told.
#[tokio::test]
async fn checks_are_made_in_order_and_with_their_parameters() {
    let raw = brisk().await;
    let source = os(&raw).await;
    let sr = raw.get("VDI", &source, "SR").await;
    let sr = sr.as_str().unwrap();
    let gone = "OpaqueRef:gone";
    assert_eq!(raw.run("VDI.clone", json!([gone])).await, failure(["HANDLE_INVALID", "VDI", gone]));
    let iso = raw.named("VDI", "guest-tools.iso").await;
    let isos = raw.get("VDI", &iso, "SR").await;
    let unsupported = failure(["SR_OPERATION_NOT_SUPPORTED", isos.as_str().unwrap()]);
    assert_eq!(raw.run("VDI.snapshot", json!([iso])).await, unsupported);
    assert_eq!(raw.run("VDI.destroy", json!([iso])).await, unsupported);
    let pbds = raw.get("SR", sr, "PBDs").await;
    for pbd in pbds.as_array().unwrap() {
        raw.call("PBD.unplug", json!([pbd])).await.unwrap();
    }
    for call in ["VDI.clone", "VDI.snapshot", "VDI.destroy"] {
        assert_eq!(raw.run(call, json!([source])).await, failure(["SR_HAS_NO_PBDS", sr]), "{call}");
    }
    assert_eq!(raw.call("VDI.set_name_label", json!([source, "x"])).await, failure(["SR_HAS_NO_PBDS", sr]));
    raw.call("VDI.add_tags", json!([source, "works"])).await.unwrap();
    assert_eq!(
        raw.call("VDI.set_read_only", json!([source, true])).await,
        failure(["PERMISSION_DENIED", "VDI.set_read_only"])
    );
}

fn code(outcome: Outcome) -> String {
    outcome.unwrap_err().remove(0)
}

/// xapi.md 9.1, 9.2: no room is 44; sizes are rounded up to 2 MiB; a disk only grows.
#[tokio::test]
async fn room_and_sizes_are_the_drivers() {
    let raw = brisk().await;
    let sr = raw.named("SR", "Shared storage").await;
    let row = |size: u64| json!({"name_label": "d", "SR": sr, "virtual_size": size, "type": "user", "sharable": false, "read_only": false, "other_config": {"a": "b"}, "tags": ["t"]});
    let disk = raw.make("VDI.create", json!([row(3 << 20)])).await;
    assert_eq!(raw.get("VDI", &disk, "virtual_size").await, json!(4 << 20));
    assert_eq!(raw.get("VDI", &disk, "other_config").await, json!({"a": "b"}));
    raw.run("VDI.resize", json!([disk, 5 << 20])).await.unwrap();
    assert_eq!(raw.get("VDI", &disk, "virtual_size").await, json!(6 << 20));
    assert_eq!(code(raw.run("VDI.resize", json!([disk, 1 << 20])).await), "SR_BACKEND_FAILURE_79");
    assert_eq!(code(raw.run("VDI.create", json!([row(4 << 40)])).await), "SR_BACKEND_FAILURE_79");
    let reference = lamina::xapi::wire::Ref(sr.clone());
    raw.sim.pool.db().set("SR", &reference, "physical_size", json!(1)).unwrap();
    assert_eq!(code(raw.run("VDI.clone", json!([disk])).await), "SR_BACKEND_FAILURE_44");
    assert_eq!(code(raw.run("VDI.create", json!([row(1)])).await), "SR_BACKEND_FAILURE_44");
}

/// xapi.md 9.1, "Tree behaviour", and 14, Snapshots: the tree moves and no byte does.
#[tokio::test]
async fn a_tree_is_tidied_while_its_bytes_stay() {
    let raw = brisk().await;
    let source = os(&raw).await;
    let digest = |uuid: &Value| raw.sim.pool.digest(uuid.as_str().unwrap()).unwrap();
    let before = digest(&raw.get("VDI", &source, "uuid").await);
    let snapshot = raw.make("VDI.snapshot", json!([source])).await;
    let work = raw.make("VDI.clone", json!([snapshot])).await;
    let uuid = raw.get("VDI", &work, "uuid").await;
    assert_eq!(raw.get("VDI", &work, "is_a_snapshot").await, json!(false));
    assert_eq!(digest(&uuid), before);
    let parent = raw.get("VDI", &work, "sm_config").await["vhd-parent"].clone();
    assert_eq!(
        raw.get("VDI", &snapshot, "sm_config").await["vhd-parent"],
        parent,
        "a clone of an empty leaf is no level more"
    );
    raw.sim.pool.world.disks().write(uuid.as_str().unwrap(), 3, &pattern(9, 3)).unwrap();
    let changed = digest(&uuid);
    assert_ne!(changed, before);
    for disk in [&source, &snapshot] {
        raw.run("VDI.destroy", json!([disk])).await.unwrap();
    }
    raw.until("VDI", &work, "sm_config", |c| c.get("vhd-parent").is_none()).await;
    assert_eq!(digest(&uuid), changed);
    assert_eq!(
        raw.call("VDI.get_by_uuid", json!([parent])).await,
        failure(["UUID_INVALID", "VDI", parent.as_str().unwrap()])
    );
}

/// xapi.md 14, Snapshots: `snapshot_of` dangles until the next scan.
#[tokio::test]
async fn a_snapshot_forgets_its_dead_source_at_the_scan() {
    let raw = brisk().await;
    let source = os(&raw).await;
    let snapshot = raw.make("VDI.snapshot", json!([source])).await;
    raw.run("VDI.destroy", json!([source])).await.unwrap();
    assert_eq!(raw.get("VDI", &snapshot, "snapshot_of").await, json!(source));
    let sr = raw.named("SR", "Shared storage").await;
    raw.run("SR.scan", json!([sr])).await.unwrap();
    assert_eq!(raw.get("VDI", &snapshot, "snapshot_of").await, "OpaqueRef:NULL");
}

/// xapi.md 4.4: a full copy shows the control domain's hold, and shares nothing.
#[tokio::test]
async fn a_copy_shares_no_chain() {
    let raw = brisk().await;
    let source = os(&raw).await;
    let local = raw.named("SR", "Local storage on host1").await;
    let copy = raw.make("VDI.copy", json!([source, local])).await;
    assert_eq!(raw.get("VDI", &copy, "SR").await, json!(local));
    assert_eq!(raw.get("VDI", &copy, "sm_config").await.get("vhd-parent"), None);
    let [a, b] = [raw.get("VDI", &source, "uuid").await, raw.get("VDI", &copy, "uuid").await];
    let digest = |uuid: &Value| raw.sim.pool.digest(uuid.as_str().unwrap()).unwrap();
    assert_eq!(digest(&a), digest(&b));
    assert_eq!(raw.get("VDI", &copy, "VBDs").await, json!([]));
}

/// xapi.md 4.4: what was forgotten comes back at the scan, nameless and keyless.
#[tokio::test]
async fn a_forgotten_disk_comes_back_without_its_name() {
    let raw = brisk().await;
    let source = os(&raw).await;
    let uuid = raw.get("VDI", &source, "uuid").await;
    raw.call("VDI.add_to_other_config", json!([source, "k", "v"])).await.unwrap();
    raw.run("VDI.forget", json!([source])).await.unwrap();
    let sr = raw.named("SR", "Shared storage").await;
    raw.run("SR.scan", json!([sr])).await.unwrap();
    let back = raw.call("VDI.get_by_uuid", json!([uuid])).await.unwrap();
    let row = raw.call("VDI.get_record", json!([back])).await.unwrap();
    assert_eq!((&row["name_label"], &row["other_config"], &row["tags"]), (&json!(""), &json!({}), &json!([])));
}

/// xapi.md 3 (VBD) and 4.6: a guest has the bytes of its disks, at any offset, by device, read-only where the VBD is, and only what is plugged.
#[tokio::test]
async fn a_guest_reads_and_writes_its_disks_by_bytes() {
    use lamina::sim::guest::{Match, program};
    use lamina::sim::power::Exit;
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    let second = raw.named("VDI", "win11-24h2").await;
    let second = raw.make("VDI.clone", json!([second])).await;
    let vbd = raw.vbd(&vm, Some(&second), "1").await.unwrap();
    // No client makes a machine start with such a VBD (xapi.md 4.6): the simulator's own rule is asked.
    raw.call("VM.set_HVM_boot_policy", json!([vm, ""])).await.unwrap();
    raw.call("VBD.set_mode", json!([vbd, "RO"])).await.unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = std::sync::Mutex::new(Some(tell));
    let work = program(move |guest| {
        let tell = tell.lock().unwrap().take();
        async move {
            let at = (2 << 20) - 2;
            guest.write_disk(0, at, b"bytes").unwrap();
            let seen = guest.read_disk(0, at, 5).unwrap();
            let refused = guest.write_disk(1, 0, b"x").unwrap_err().to_string();
            let absent = guest.read_disk(2, 0, 1).unwrap_err().to_string();
            let beyond = guest.read_disk(0, guest.disk_size(0).unwrap(), 1).is_err();
            tell.unwrap().send((seen, refused, absent, beyond, guest.disks())).unwrap();
            Exit::Halt
        }
    });
    raw.sim.pool.add_guest(Match::default(), work);
    let before = raw.sim.pool.digest(raw.get("VDI", &second, "uuid").await.as_str().unwrap());
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let (seen, refused, absent, beyond, disks) = told.await.unwrap();
    assert_eq!((seen.as_slice(), beyond, disks), (b"bytes".as_slice(), true, vec![0, 1]));
    assert!(refused.contains("read-only") && absent.contains("device 2"), "{refused}; {absent}");
    let uuid = |value: Value| value.as_str().unwrap().to_owned();
    let (first, second) = (uuid(raw.get("VDI", &disk, "uuid").await), uuid(raw.get("VDI", &second, "uuid").await));
    assert_eq!(raw.sim.pool.world.disks().read_at(&first, (2 << 20) - 2, 5).unwrap(), b"bytes");
    assert_eq!(raw.sim.pool.digest(&second), before);
}

/// xapi.md 4.4, 9.1: a raw disk has no snapshots, and a clone of it is a full copy; a driver names the format in `sm_config`.
#[tokio::test]
async fn formats_differ_in_their_trees() {
    let world = "replace: true\nrepositories: [{name: Block, type: lvmoiscsi, size_gib: 9}, {name: Share, type: smb, size_gib: 9}]\n\
        disks: [{name: plain, size_gib: 1, format: raw, blocks: [0, 3]}]\n";
    let raw = super::plans::of(world).await;
    let plain = raw.named("VDI", "plain").await;
    assert_eq!(raw.get("VDI", &plain, "sm_config").await, json!({"vdi_type": "aio"}));
    assert_eq!(raw.run("VDI.snapshot", json!([plain])).await.unwrap_err()[0], "UNIMPLEMENTED_IN_SM_BACKEND");
    let copy = raw.make("VDI.clone", json!([plain])).await;
    let digest = async |vdi: &str| raw.sim.pool.digest(raw.get("VDI", vdi, "uuid").await.as_str().unwrap()).unwrap();
    assert_eq!(digest(&copy).await, digest(&plain).await);
    assert_eq!(raw.get("VDI", &copy, "sm_config").await, json!({"vdi_type": "aio"}), "no parent");
    let make = async |sr: &str, format: &str| {
        let sr = raw.named("SR", sr).await;
        let config = json!({"image-format": format});
        let row = json!({"SR": sr, "virtual_size": 1 << 30, "type": "user", "sharable": false, "read_only": false, "other_config": {}, "sm_config": config});
        raw.run("VDI.create", json!([row])).await
    };
    let made = make("Block", "qcow2").await.unwrap();
    let config = raw.get("VDI", made.as_str().unwrap(), "sm_config").await;
    assert_eq!(config, json!({"vdi_type": "qcow2", "image-format": "qcow2"}));
    let child = raw.make("VDI.snapshot", json!([made])).await;
    assert!(raw.get("VDI", &child, "sm_config").await["vhd-parent"].is_string());
    for (sr, format) in [("Share", "raw"), ("Share", "qcow2"), ("Block", "vmdk")] {
        assert_eq!(make(sr, format).await.unwrap_err()[0], "SR_BACKEND_FAILURE_78", "{sr} {format}");
    }
}
