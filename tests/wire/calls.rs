//! What every call passes: names, arity, types, accessors. xapi.md 1.4, 4.4, 8 and 14.

use super::{Raw, failure};
use serde_json::json;

/// xapi.md 1.4 and 14 (Parameters of errors, Async).
#[tokio::test]
async fn names_and_arity_are_checked_first() {
    let raw = Raw::new().await;
    for (method, params, expected) in [
        ("VM.fly", json!([]), failure(["MESSAGE_METHOD_UNKNOWN", "VM.fly"])),
        ("Async.VM.fly", json!([]), failure(["MESSAGE_METHOD_UNKNOWN", "VM.fly"])),
        ("nonsense", json!([]), failure(["MESSAGE_METHOD_UNKNOWN", "nonsense"])),
        ("VM.get_record", json!([]), failure(["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "0"])),
        ("VM.get_record", json!(["a", "b"]), failure(["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "2"])),
        ("VM.add_to_other_config", json!(["a", "b", 5]), failure(["FIELD_TYPE_ERROR", "value"])),
        ("VDI.get_parentage", json!(["a"]), failure(["MESSAGE_METHOD_UNKNOWN", "VDI.get_parentage"])),
    ] {
        assert_eq!(raw.call(method, params).await, expected, "{method}");
    }
    let none = raw.bare("VM.get_record", json!([])).await;
    assert_eq!(none, failure(["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.get_record", "1", "-1"]));
    assert_eq!(raw.call("Async.VM.get_record", json!(["x"])).await.unwrap_err()[0], "Fault");
    // Also with an underscore, where the call is synchronous.
    assert!(raw.call("VM_metrics_get_all", json!([])).await.is_ok());
    assert!(raw.bare("system.listMethods", json!([])).await.unwrap().as_array().unwrap().contains(&json!("VDI.clone")));
}

/// xapi.md 8: dead references and uuids; 14, Mark: the one test-and-set.
#[tokio::test]
async fn accessors_keep_their_rules() {
    let raw = Raw::new().await;
    let vm = raw.row("VM", "x");
    assert_eq!(raw.call("VM.get_uuid", json!(["OpaqueRef:x"])).await, failure(["HANDLE_INVALID", "VM", "OpaqueRef:x"]));
    assert_eq!(raw.call("VM.get_by_uuid", json!(["u"])).await, failure(["UUID_INVALID", "VM", "u"]));
    let uuid = raw.call("VM.get_uuid", json!([vm])).await.unwrap();
    assert_eq!(raw.call("VM.get_by_uuid", json!([uuid])).await, Ok(json!(vm)));
    assert_eq!(raw.call("VM.get_by_name_label", json!(["x"])).await, Ok(json!([vm])));
    assert_eq!(raw.call("VM.get_by_name_label", json!(["y"])).await, Ok(json!([])));
    let mark = json!([vm, "k", "v"]);
    assert_eq!(raw.call("VM.add_to_other_config", mark.clone()).await, Ok(json!("")));
    assert_eq!(
        raw.call("VM.add_to_other_config", mark).await,
        failure(["MAP_DUPLICATE_KEY", "VM", "other_config", &vm, "k"])
    );
    for _ in 0..2 {
        assert_eq!(raw.call("VM.remove_from_other_config", json!([vm, "k"])).await, Ok(json!("")));
        assert_eq!(raw.call("VM.add_tags", json!([vm, "t"])).await, Ok(json!("")));
    }
    assert_eq!(raw.call("VM.get_tags", json!([vm])).await, Ok(json!(["t"])));
    raw.call("VM.remove_tags", json!([vm, "t"])).await.unwrap();
    raw.call("VM.set_name_description", json!([vm, "d"])).await.unwrap();
    let record = raw.call("VM.get_record", json!([vm])).await.unwrap();
    assert_eq!((&record["tags"], &record["name_description"]), (&json!([]), &json!("d")));
}

/// xapi.md 14, last line: the storage driver's own fields.
#[tokio::test]
async fn a_drivers_fields_are_not_for_clients() {
    let raw = Raw::new().await;
    let vdi = raw.row("VDI", "x");
    for call in ["VDI.set_read_only", "VDI.set_sharable"] {
        assert_eq!(raw.call(call, json!([vdi, true])).await, failure(["PERMISSION_DENIED", call]));
    }
}

/// xapi.md 8: equality, no precedence, database names; other_config finds nothing (14, Tasks).
#[tokio::test]
async fn records_are_filtered_by_expressions() {
    let raw = Raw::new().await;
    let (a, _) = (raw.row("VM", "only-a"), raw.row("VM", "only-b"));
    let find = |expression: &str| {
        let params = json!([expression]);
        let raw = &raw;
        async move { raw.call("VM.get_all_records_where", params).await }
    };
    let found = find("(field \"name__label\" = \"only-a\") and (field \"is_a_template\" = \"false\")").await.unwrap();
    assert_eq!(found.as_object().unwrap().keys().collect::<Vec<_>>(), [&a]);
    assert_eq!(found[&a]["name_label"], "only-a");
    assert_eq!(find("field \"other_config\" = \"()\"").await, Ok(json!({})));
    assert_eq!(find("field \"name__label\" =").await.unwrap_err()[0], "INVALID_VALUE");
    let all = raw.call("VM.get_all_where", json!(["field \"name__label\" = \"only-a\""])).await;
    assert_eq!(all, Ok(json!([a])));
}

/// xapi.md 3, message: an acceptable human-readable trail.
#[tokio::test]
async fn messages_are_kept_and_found_again() {
    let raw = Raw::new().await;
    let made = raw.call("message.create", json!(["VM_STARTED", 5, "VM", "u-1", "text"])).await.unwrap();
    let found = raw.call("message.get", json!(["VM", "u-1", "19700101T00:00:00Z"])).await.unwrap();
    assert_eq!(found[made.as_str().unwrap()]["body"], "text");
    assert_eq!(raw.call("message.get", json!(["VM", "u-1", "29990101T00:00:00Z"])).await, Ok(json!({})));
    raw.call("message.destroy", json!([made])).await.unwrap();
    assert_eq!(raw.call("message.get_since", json!(["19700101T00:00:00Z"])).await, Ok(json!({})));
}
