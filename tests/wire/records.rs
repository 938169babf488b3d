//! Shapes against the published data model: xapi.md 14, "Clients in the field".

use super::Raw;
use lamina::sim::schema::{Type, schema};
use serde_json::{Value, json};

fn fits(value: &Value, kind: &Type) -> bool {
    match kind {
        Type::String | Type::Ref(_) | Type::DateTime | Type::Void => value.is_string(),
        Type::Enum(name) => {
            value.as_str().is_some_and(|v| schema().enums.get(name).is_none_or(|all| all.iter().any(|e| e == v)))
        }
        Type::Int => value.is_i64(),
        Type::Float => value.is_f64(),
        Type::Bool => value.is_boolean(),
        Type::Set(inner) => value.as_array().is_some_and(|all| all.iter().all(|v| fits(v, inner))),
        Type::Map(_, inner) => value.as_object().is_some_and(|all| all.values().all(|v| fits(v, inner))),
        Type::Record(_) => value.is_object(),
        Type::Other => true,
    }
}

/// xapi.md 14, Clients in the field: every record served has exactly the schema's fields, of the schema's types.
#[tokio::test]
async fn every_record_has_every_field_and_no_other() {
    let raw = Raw::new().await;
    for class in schema().classes.values().filter(|c| c.messages.get("get_all_records").is_some_and(|m| !m.removed)) {
        if raw.sim.pool.db().count(&class.name) == 0 {
            raw.sim.pool.db().create(&class.name, []);
        }
        let records = raw.call(&format!("{}.get_all_records", class.name), json!([])).await.unwrap();
        for record in records.as_object().unwrap().values() {
            let record = record.as_object().unwrap();
            for field in &class.fields {
                let value = record.get(&field.name).unwrap_or_else(|| panic!("{} lacks {}", class.name, field.name));
                assert!(fits(value, &field.kind), "{}.{} = {value} is no {:?}", class.name, field.name, field.kind);
            }
            assert_eq!(record.len(), class.fields.len(), "{}", class.name);
        }
    }
}

/// xapi.md 1.4: one parameter more than the schema's is a mismatch, and so is one fewer than the compulsory ones.
#[tokio::test]
async fn every_call_takes_exactly_the_schemas_parameters() {
    let raw = Raw::new().await;
    for class in schema().classes.values() {
        for message in class.messages.values().filter(|m| !m.removed && !m.sessionless) {
            let method = format!("{}.{}", class.name, message.name);
            let least = message.params.iter().filter(|p| p.default.is_none()).count();
            for count in [message.params.len() + 1].into_iter().chain(least.checked_sub(1)) {
                let refused = raw.call(&method, vec![json!("x"); count].into()).await.unwrap_err();
                let expected = message.params.len().to_string();
                assert_eq!(refused, ["MESSAGE_PARAMETER_COUNT_MISMATCH", &method, &expected, &count.to_string()]);
            }
        }
    }
}

/// xapi.md 3: every class, field and message of a packaging life is there, and the digest parses.
#[test]
fn the_schema_is_whole() {
    for name in "session task event pool VM VM_metrics VM_guest_metrics host host_metrics network VIF PIF SM SR VDI VBD PBD console message \
        Certificate role subject"
        .split_whitespace()
    {
        let class = schema().class(name).unwrap();
        assert!(!class.fields.is_empty() && !class.messages.is_empty(), "{name}");
    }
    assert_eq!(schema().class("VM").unwrap().fields.len(), 90);
    assert_eq!(schema().class("VDI").unwrap().fields.len(), 32);
}

/// A constructor's missing compulsory field is named (xapi.md 1.4); the rest takes its default.
#[test]
fn constructors_know_what_is_compulsory() {
    let class = schema().class("VBD").unwrap();
    let refused = class.construct(&json!({"VM": "OpaqueRef:v"})).unwrap_err();
    assert!(refused.code == "INTERNAL_ERROR" && refused.params[0].contains("Dispatcher_FieldNotFound"), "{refused}");
    let row = class
        .construct(&json!({"VM": "OpaqueRef:v", "VDI": "OpaqueRef:d", "userdevice": "0", "bootable": true, "mode": "RW", "type": "Disk",
            "empty": false, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}))
        .unwrap();
    assert_eq!((&row["userdevice"], &row["unpluggable"]), (&json!("0"), &json!(true)));
    assert!(!row.contains_key("status_code"));
}
