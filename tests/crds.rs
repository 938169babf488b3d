//! The committed CRDs are the ones that the types make, and every field in them explains itself.

use std::{fs, path::PathBuf};

use lamina::api::crd;
use serde_json::Value;

/// The repository's own file, wherever the tests are started.
fn committed(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares with the committed file, or writes it where `UPDATE` is set.
fn assert_committed(path: &str, made: &str) {
    let path = committed(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, made).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == made, "{} is not what the code makes; run: UPDATE=1 cargo test crds::", path.display());
}

#[test]
fn crds_are_committed() {
    for crd in crd::crds().unwrap() {
        let made =
            format!("# Generated from src/api by `UPDATE=1 cargo test crds::`.\n{}", crd::to_yaml(&crd).unwrap());
        assert_committed(&format!("crds/{}.yaml", crd.spec.names.plural), &made);
    }
}

/// Calls `see` with the path and schema of every field below `schema`.
pub fn each_field(path: &str, schema: &Value, see: &mut impl FnMut(&str, &Value)) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        see(&path, field);
        each_field(&path, field, see);
    }
    if let Some(items) = schema.get("items") {
        each_field(&format!("{path}[]"), items, see);
    }
}

pub fn schemas() -> Vec<(String, Value)> {
    crd::crds()
        .unwrap()
        .iter()
        .map(|crd| {
            (
                crd.spec.names.kind.clone(),
                serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].clone(),
            )
        })
        .collect()
}

#[test]
fn every_field_explains_itself() {
    let mut bare = vec![];
    for (kind, schema) in schemas() {
        each_field(&kind, &schema, &mut |path, field| {
            let about_metadata =
                path.ends_with(".metadata") || path.ends_with(".apiVersion") || path.ends_with(".kind");
            if !about_metadata && field["description"].as_str().is_none_or(|d| d.len() < 10) {
                bare.push(path.to_owned());
            }
        });
    }
    assert!(bare.is_empty(), "without a description: {bare:#?}");
}

#[test]
fn nothing_is_nullable_and_status_has_its_default() {
    for (kind, schema) in schemas() {
        assert_eq!(schema["properties"]["status"]["default"], serde_json::json!({"observedGeneration": -1}), "{kind}");
        each_field(&kind, &schema, &mut |path, field| {
            assert!(field.get("nullable").is_none() && field.get("title").is_none(), "{path}");
            assert!(field["enum"].as_array().is_none_or(|values| !values.contains(&Value::Null)), "{path}");
        });
    }
}

/// CEL may only walk what is bounded, and an unbounded list in status is a leak.
#[test]
fn every_list_is_bounded() {
    for (kind, schema) in schemas() {
        each_field(&kind, &schema, &mut |path, field| {
            let list_of_others = path.contains("matchExpressions[]");
            assert!(
                field["type"] != "array" || list_of_others || field.get("maxItems").is_some(),
                "{path} has no maxItems"
            );
        });
    }
}

/// The YAML writer folds long text: what is read back must be what was meant, rules above all.
#[test]
fn yaml_reads_back_as_it_was() {
    for crd in crd::crds().unwrap() {
        let back: Value = serde_saphyr::from_str(&crd::to_yaml(&crd).unwrap()).unwrap();
        assert_eq!(back, serde_json::to_value(&crd).unwrap());
    }
}

#[test]
fn the_reference_is_committed() {
    assert_committed("docs/reference.md", &lamina::api::condition::reference());
}
