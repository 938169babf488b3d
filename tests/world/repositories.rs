//! Rows and what lies beneath them: introduced, brought up to date, forgotten (xapi.md 4.4, 8).

use serde_json::{Value, json};

use super::{brisk, checks::disk};
use crate::wire::{Outcome, Raw, failure};

/// `VDI.introduce` of a disk under a name, at a location.
async fn introduce(raw: &Raw, uuid: &str, sr: &str, location: &str) -> Outcome {
    let never = "19700101T00:00:00Z";
    let none = "OpaqueRef:NULL";
    let given = json!([
        uuid, "again", "text", sr, "user", false, false, {"k": "v"}, location, {"x": "y"}, {}, true, 1, 1, none, false, never, none
    ]);
    raw.run("VDI.introduce", given).await
}

/// xapi.md 4.4, `VDI.introduce`: a row for a disk that is there, once, and with what the storage says of it.
#[tokio::test]
async fn a_forgotten_disk_is_introduced_again() {
    let raw = brisk().await;
    let sr = raw.named("SR", "Shared storage").await;
    let [vdi, other] = [disk(&raw, &sr, json!({})).await, disk(&raw, &sr, json!({})).await];
    let uuid = raw.get("VDI", &vdi, "uuid").await.as_str().unwrap().to_owned();
    let taken = raw.get("VDI", &other, "location").await.as_str().unwrap().to_owned();
    assert_eq!(introduce(&raw, &uuid, &sr, &uuid).await, failure(["UUID_INVALID", "VDI", &uuid]), "it has a row");
    raw.run("VDI.forget", json!([vdi])).await.unwrap();
    assert_eq!(raw.call("VDI.get_by_uuid", json!([uuid])).await, failure(["UUID_INVALID", "VDI", &uuid]));
    assert!(raw.sim.pool.digest(&uuid).is_some(), "the disk stays");
    assert_eq!(introduce(&raw, &uuid, &sr, &taken).await, failure(["LOCATION_NOT_UNIQUE", &sr, &taken]));
    let nowhere = "0a0a0a0a-0000-4000-8000-000000000000";
    assert_eq!(introduce(&raw, nowhere, &sr, nowhere).await.unwrap_err()[0], "SR_BACKEND_FAILURE_46", "xapi.md 9.3");
    let back = introduce(&raw, &uuid, &sr, &uuid).await.unwrap();
    let row = raw.call("VDI.get_record", json!([back])).await.unwrap();
    let shown = ["uuid", "name_label", "name_description", "other_config", "xenstore_data"].map(|f| row[f].clone());
    assert_eq!(shown, [json!(uuid), json!("again"), json!("text"), json!({"k": "v"}), json!({"x": "y"})]);
    assert_eq!((&row["virtual_size"], &row["managed"]), (&json!(4 << 20), &json!(true)), "the storage's own");
    for pbd in raw.get("SR", &sr, "PBDs").await.as_array().unwrap() {
        raw.call("PBD.unplug", json!([pbd])).await.unwrap();
    }
    assert_eq!(introduce(&raw, &uuid, &sr, "x").await, failure(["SR_HAS_NO_PBDS", &sr]));
}

/// xapi.md 3 (physical_utilisation) and 4.4 (`VDI.update`, `SR.update`): numbers are stale until the driver is asked.
#[tokio::test]
async fn numbers_are_stale_until_the_driver_is_asked() {
    let raw = brisk().await;
    let sr = raw.named("SR", "Shared storage").await;
    let vdi = disk(&raw, &sr, json!({"virtual_size": 64 << 20})).await;
    let uuid = raw.get("VDI", &vdi, "uuid").await;
    let used = async |class: &str, object: &str| raw.get(class, object, "physical_utilisation").await.as_u64().unwrap();
    raw.run("SR.update", json!([sr])).await.unwrap();
    let before = (used("VDI", &vdi).await, used("SR", &sr).await);
    for block in 0..8 {
        raw.sim.pool.world.disks().write(uuid.as_str().unwrap(), block, b"x").unwrap();
    }
    assert_eq!((used("VDI", &vdi).await, used("SR", &sr).await), before);
    raw.run("VDI.update", json!([vdi])).await.unwrap();
    assert_eq!((used("VDI", &vdi).await, used("SR", &sr).await), (before.0 + (16 << 20), before.1));
    raw.run("SR.update", json!([sr])).await.unwrap();
    assert_eq!(used("SR", &sr).await, before.1 + (16 << 20));
}

/// xapi.md 8, last line but one: a repository that was forgotten and attached again has its disks, and nobody's keys.
#[tokio::test]
async fn a_forgotten_repository_comes_back_with_nameless_disks() {
    let raw = brisk().await;
    let sr = raw.named("SR", "Local storage on host2").await;
    let host = raw.named("host", "host2").await;
    let vdi = disk(&raw, &sr, json!({"other_config": {"k": "v"}, "tags": ["t"]})).await;
    let [sr_uuid, uuid] = [raw.get("SR", &sr, "uuid").await, raw.get("VDI", &vdi, "uuid").await];
    let pbds = raw.get("SR", &sr, "PBDs").await;
    assert_eq!(raw.run("SR.forget", json!([sr])).await.unwrap_err()[1], sr, "while it is attached");
    raw.call("PBD.unplug", json!([pbds[0]])).await.unwrap();
    raw.run("SR.forget", json!([sr])).await.unwrap();
    for (class, object) in [("SR", &sr), ("VDI", &vdi), ("PBD", &pbds[0].as_str().unwrap().to_owned())] {
        let gone = raw.call(&format!("{class}.get_record"), json!([object])).await;
        assert_eq!(gone, failure(["HANDLE_INVALID", class, object]));
    }
    let again = raw.make("SR.introduce", json!([sr_uuid, "again", "", "ext", "user", false, {}])).await;
    let row = json!({"host": host, "SR": again, "device_config": {}, "other_config": {}});
    let pbd = raw.make("PBD.create", json!([row])).await;
    raw.call("PBD.plug", json!([pbd])).await.unwrap();
    let back = raw.call("VDI.get_by_uuid", json!([uuid])).await.unwrap();
    let row: Value = raw.call("VDI.get_record", json!([back])).await.unwrap();
    assert_eq!((&row["SR"], &row["name_label"]), (&json!(again), &json!("")));
    assert_eq!((&row["other_config"], &row["tags"]), (&json!({}), &json!([])));
}
