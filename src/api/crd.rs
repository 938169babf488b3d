//! The CRDs, made from the types. Written to `crds/` by the test that compares them (`UPDATE=1`), applied by tests and the demo.
//!
//! Three things the derive macros cannot say are added here: the status default, without which GitOps tools take a fresh object
//! for a finished one; no `nullable`, no `null` among enum values and no `title`, which only invite values nobody means.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{Connector, PlatformLayer};

/// Why a CRD could not be made. Only a mistake in the types can cause one; tests would show it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the schema made from the types is not a CRD")]
    NotACrd(#[from] serde_json::Error),
    #[error("the CRD cannot be written as YAML")]
    NotYaml(#[from] serde_saphyr::ser::Error),
}

/// Both CRDs, ready to apply.
///
/// # Errors
/// Only if the types do not make a CRD at all.
pub fn crds() -> Result<Vec<CustomResourceDefinition>, Error> {
    [PlatformLayer::crd(), Connector::crd()].into_iter().map(finish).collect()
}

fn finish(crd: CustomResourceDefinition) -> Result<CustomResourceDefinition, Error> {
    let mut crd = serde_json::to_value(crd)?;
    if let Some(schema) = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        tidy(schema);
        if let Some(status) = schema.pointer_mut("/properties/status").and_then(Value::as_object_mut) {
            status.insert("default".into(), json!({"observedGeneration": -1}));
        }
    }
    Ok(serde_json::from_value(crd)?)
}

/// Walks a schema; `properties` and `default` hold the users' names and values, so a key there means nothing to us.
fn tidy(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    schema.remove("nullable");
    schema.remove("title");
    if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        values.retain(|v| !v.is_null());
    }
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(tidy);
    }
    for nested in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get_mut(nested) {
            tidy(schema);
        }
    }
}

/// Schema of `metav1.Time`. `k8s-openapi` has schemas only as a feature that makes every crate above it compile again.
pub(super) fn time_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// Schema of a list of `metav1.Condition`, with the limits that Kubernetes itself sets.
pub(super) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "type": "object",
            "description": "One aspect of the object's state.",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "Which aspect, for example Ready."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "True, False or Unknown."},
                "reason": {
                    "type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, in one word; each is explained in the reference."
                },
                "message": {"type": "string", "maxLength": 32768, "description": "Why, in words, and what to do next."},
                "lastTransitionTime": {
                    "type": "string", "format": "date-time", "description": "When status last changed."
                },
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0, "description": "The generation of spec that was looked at."
                }
            }
        }
    })
}

/// Schema of `metav1.LabelSelector`.
pub(super) fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "type": "object", "additionalProperties": {"type": "string"}, "description": "Labels that must all be there."
            },
            "matchExpressions": {
                "type": "array", "maxItems": 32, "description": "Requirements that must all hold.", "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object", "required": ["key", "operator"], "description": "One requirement on a label.",
                    "properties": {
                        "key": {"type": "string", "description": "The label's key."},
                        "operator": {
                            "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            "description": "In, NotIn, Exists or DoesNotExist."
                        },
                        "values": {
                            "type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic",
                            "description": "With In and NotIn: the values."
                        }
                    }
                }
            }
        }
    })
}

/// A CRD as it is committed in `crds/`.
///
/// # Errors
/// Only if it cannot be written as YAML at all.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, Error> {
    Ok(serde_saphyr::to_string(crd)?)
}
