//! Our digest of XAPI's data model, word for word against the published one (xapi.md 14, "`xenapi.json`").
//!
//! `xenapi.json` beside this is the published file, cut down to the digest's classes and to what is compared, and else as it was.
//! `LAMINA_XENAPI_JSON` names another, whole or not: a newer XAPI's, say.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// From the least to the greatest (xapi.md 2.3).
const ROLES: [&str; 6] = ["read-only", "vm-operator", "vm-admin", "vm-power-admin", "pool-operator", "pool-admin"];

/// What is said of everything that has a name: `VDI.SR` a field, `VDI.clone()` a call, `vdi_type` an enumeration.
type Facts = BTreeMap<String, Value>;

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap()
}

fn ours() -> Facts {
    let digest: Value = serde_json::from_str(include_str!("../../src/sim/schema.json")).unwrap();
    let mut facts = Facts::new();
    for (class, row) in digest["classes"].as_object().unwrap() {
        for field in list(&row["fields"]) {
            facts.insert(format!("{class}.{}", field[0].as_str().unwrap()), json!([field[1], field[2], field[3]]));
        }
        for call in list(&row["messages"]) {
            let is = |key: &str| call[key] == json!(true);
            let params: Vec<Value> = list(&call["params"]).map(|p| json!([p[0], p[1]])).collect();
            let flags = [is("implicit"), !is("sessionless"), is("removed")];
            facts.insert(format!("{class}.{}()", name(call)), json!([params, call["result"], call["role"], flags]));
        }
    }
    facts.extend(digest["enums"].as_object().unwrap().clone());
    facts
}

fn published(model: &Value) -> Facts {
    let mut facts = Facts::new();
    for class in list(model) {
        for field in list(&class["fields"]) {
            let key = format!("{}.{}", name(class), name(field).replace("__", "_"));
            facts.insert(key, json!([field["type"], field["qualifier"], field["default"]]));
        }
        for call in list(&class["messages"]) {
            let session = |p: &&Value| name(p) == "session_id" && p["type"] == "session ref";
            let params: Vec<_> =
                list(&call["params"]).filter(|p| !session(p)).map(|p| json!([p["name"], p["type"]])).collect();
            let may = |role: &&&str| list(&call["roles"]).any(|given| given == **role);
            // Nobody but the local root may call what names no role.
            let least = ROLES.iter().find(may).unwrap_or(&"pool-admin");
            let removed = call["lifecycle"]["state"] == "Removed_s";
            let flags = [call["implicit"] == json!(true), list(&call["params"]).any(|p| session(&p)), removed];
            let key = format!("{}.{}()", name(class), name(call));
            facts.insert(key, json!([params, call["result"][0], least, flags]));
        }
        for kind in list(&class["enums"]) {
            facts.insert(name(kind).to_owned(), list(&kind["values"]).map(|v| v["name"].clone()).collect());
        }
    }
    facts
}

/// xapi.md 14: fields with type, qualifier and default, calls with parameters, result, role and state, enumerations with their values: of
/// the classes that the digest has nothing is wrong, missing or made up.
#[test]
fn the_digest_says_what_the_published_model_says() {
    let model = match std::env::var_os("LAMINA_XENAPI_JSON") {
        Some(path) => std::fs::read_to_string(path).unwrap(),
        None => include_str!("xenapi.json").to_owned(),
    };
    let model: Value = serde_json::from_str(&model).unwrap();
    let (ours, mut published) = (ours(), published(&model));
    let digested = |fact: &str| match fact.split_once('.') {
        Some((class, _)) => lamina::sim::schema::schema().class(class).is_some(),
        None => ours.contains_key(fact),
    };
    published.retain(|fact, _| digested(fact));
    let all = ours.keys().chain(published.keys());
    let mut wrong: Vec<&String> = all.filter(|fact| ours.get(*fact) != published.get(*fact)).collect();
    wrong.dedup();
    let told = |fact: &&String| format!("{fact}: {:?} and not {:?}", published.get(*fact), ours.get(*fact));
    assert!(wrong.is_empty(), "the published model says\n{}", wrong.iter().map(told).collect::<Vec<_>>().join("\n"));
    assert!(ours.len() > 1000, "{} facts compared", ours.len());
}
