//! What is shipped beside the controller, and what kubectl shows: paths and names in it must be those of the types.

use std::collections::BTreeSet;
use std::path::Path;

use kube::api::{Patch, PatchParams};
use lamina::api::condition::ConditionType;
use lamina::api::crd;
use lamina::controller::metrics::Metrics;
use serde_json::{Value, json};

use crate::common::rig::Rig;

fn shipped(path: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What follows `mark` in a text, as far as it is a word or a path.
fn after<'a>(text: &'a str, mark: &str) -> BTreeSet<&'a str> {
    let word = |rest: &'a str| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "._".contains(c))).unwrap_or(rest.len());
        &rest[..end]
    };
    text.match_indices(mark).map(|(at, _)| word(&text[at + mark.len()..])).collect()
}

/// Does the schema of this kind have the path?
fn has(kind: &str, path: &str) -> bool {
    if path.starts_with("metadata.") || path == "metadata" {
        return true;
    }
    let definitions = crd::crds().expect("the definitions");
    let definition = definitions.iter().find(|crd| crd.spec.names.kind == kind).expect("the kind");
    let schema = json!(definition.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()));
    path.split('.').try_fold(&schema, |at, field| at["properties"].get(field)).is_some()
}

#[test]
fn the_health_checks_for_gitops_name_what_there_is() {
    let is_condition = |word: &str| assert!(ConditionType::parse(word).is_some(), "no condition {word}");
    let flux = shipped("gitops/flux.yaml").remove(0);
    let checks = flux["spec"]["healthCheckExprs"].as_array().expect("checks");
    assert!(!checks.is_empty());
    for check in checks {
        assert_eq!(check["apiVersion"], "lamina.dev/v1alpha1");
        let kind = check["kind"].as_str().expect("a kind");
        for word in ["inProgress", "failed", "current"] {
            let expression = check[word].as_str().unwrap_or_else(|| panic!("no {word}"));
            for path in after(expression, "status.").into_iter().filter(|path| !path.is_empty()) {
                let path = path.trim_end_matches(".exists");
                let is_of_a_condition = expression.contains(&format!("c.status.{path}"));
                assert!(is_of_a_condition || has(kind, &format!("status.{path}")), "{kind} has no status.{path}");
            }
            for quoted in expression.split('\'').skip(1).step_by(2).filter(|word| *word != "True") {
                is_condition(quoted);
            }
        }
    }
    let argo = shipped("gitops/argocd-cm.yaml").remove(0);
    let scripts = argo["data"].as_object().expect("scripts");
    for kind in ["PlatformLayer", "Connector"] {
        let script = scripts[&format!("resource.customizations.health.lamina.dev_{kind}")].as_str().expect("a script");
        for path in after(script, "obj.") {
            assert!(has(kind, path), "{kind} has no {path}");
        }
        after(script, "is.").into_iter().for_each(is_condition);
        let words = || script.split(|c: char| !c.is_alphanumeric());
        let count = |word: &str| words().filter(|w| *w == word).count();
        assert_eq!(count("then") - count("elseif") + count("do"), count("end"), "each block is closed");
        for word in ["Progressing", "Degraded", "Suspended", "Healthy"] {
            assert!(script.contains(&format!("\"{word}\"")), "Argo CD's {word} is never set");
        }
    }
}

#[test]
fn alerts_ask_for_metrics_that_there_are() {
    let mut text = String::new();
    let metrics = Metrics::default();
    // A family without a series is not shown.
    metrics.stream_error("layers");
    metrics.sr_free("default/lab", &[("fast".to_owned(), 1)]);
    prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).expect("metrics");
    for rules in shipped("monitoring/prometheusrule.yaml") {
        for group in rules["spec"]["groups"].as_array().expect("groups") {
            for rule in group["rules"].as_array().expect("rules") {
                let expression = rule["expr"].as_str().expect("an expression");
                for name in after(expression, "lamina_") {
                    let family = name.trim_end_matches("_total");
                    assert!(text.contains(&format!("# TYPE lamina_{family} ")), "no metric lamina_{family}:\n{text}");
                }
                let summary = rule["annotations"]["summary"].as_str().expect("a summary");
                for label in after(summary, "$labels.") {
                    assert!(text.contains(&format!("{label}=\"")), "no label {label}");
                }
            }
        }
    }
}

/// What `kubectl get` asks for, and prints as it comes.
struct Table(Value);

impl Table {
    async fn of(rig: &Rig, plural: &str) -> Self {
        let path = format!("/apis/lamina.dev/v1alpha1/namespaces/{}/{plural}", rig.namespace);
        let request =
            hyper::Request::get(path).header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").body(Vec::new());
        Self(rig.client.request(request.expect("a request")).await.expect("a table"))
    }

    fn columns(&self) -> &[Value] {
        self.0["columnDefinitions"].as_array().expect("columns")
    }

    /// Heads of the columns; `wide`: with those of `-o wide`.
    fn heads(&self, wide: bool) -> Vec<String> {
        let shown = self.columns().iter().filter(|c| wide || c["priority"] == 0);
        shown.map(|c| c["name"].as_str().unwrap_or_default().to_uppercase()).collect()
    }

    /// A cell of the first row.
    fn cell(&self, head: &str) -> &Value {
        let at = self.columns().iter().position(|c| c["name"].as_str().is_some_and(|c| c.eq_ignore_ascii_case(head)));
        &self.0["rows"][0]["cells"][at.expect(head)]
    }
}

fn not_ready(reason: &str) -> Value {
    let now = "2026-01-01T00:00:00Z";
    json!({"type": "Ready", "status": "False", "reason": reason, "message": "m", "lastTransitionTime": now})
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_reason_and_progress() {
    let rig = Rig::new().await;
    rig.layer("shown", json!({"suspend": true})).await;
    let status = json!({"phase": "Pending", "conditions": [not_ready("CreatingDisk")], "operation": {"step": "CloneDisk", "progress": 35}});
    let patch = Patch::Merge(json!({ "status": status }));
    rig.layers().patch_status("shown", &PatchParams::default(), &patch).await.expect("a status");
    let table = Table::of(&rig, "platformlayers").await;
    assert_eq!(table.heads(false), ["NAME", "PHASE", "READY", "REASON", "VERSION", "PROGRESS", "AGE"]);
    assert_eq!(
        table.heads(true),
        ["NAME", "PHASE", "READY", "REASON", "VERSION", "PROGRESS", "MACHINE", "CONNECTOR", "OS LAYER", "AGE"]
    );
    let cells = ["reason", "progress", "ready"].map(|head| table.cell(head).clone());
    assert_eq!(cells, [json!("CreatingDisk"), json!(35), json!("False")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_what_a_connector_leads_to_and_who_uses_it() {
    let rig = Rig::new().await;
    let status =
        json!({"conditions": [not_ready("CredentialsRefused")], "coordinator": "xen1 (10.0.0.1)", "layers": 2});
    let patch = Patch::Merge(json!({ "status": status }));
    rig.connectors().patch_status("lab", &PatchParams::default(), &patch).await.expect("a status");
    let table = Table::of(&rig, "connectors").await;
    for wide in [false, true] {
        assert_eq!(table.heads(wide), ["NAME", "READY", "REASON", "COORDINATOR", "LAYERS", "AGE"]);
    }
    let cells = ["name", "ready", "reason", "coordinator", "layers"].map(|head| table.cell(head).clone());
    assert_eq!(json!(cells), json!(["lab", "False", "CredentialsRefused", "xen1 (10.0.0.1)", 2]));
}

/// What a cluster that enforces the restricted Pod Security Standard, and an operator who was woken at night, look for.
#[test]
fn the_pod_has_no_more_than_it_needs_and_is_probed() {
    let deployment = shipped("deployment.yaml").remove(0);
    let (spec, pod) = (&deployment["spec"], &deployment["spec"]["template"]["spec"]);
    assert_eq!(deployment["kind"], "Deployment");
    assert_eq!(spec["strategy"]["type"], "Recreate", "two would race for the Lease at every update");
    let user = &pod["securityContext"];
    assert_eq!(user["runAsNonRoot"], true);
    assert!(user["runAsUser"].as_u64().is_some_and(|uid| uid > 0), "the image alone names no user: {user}");
    assert_eq!(user["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod["serviceAccountName"], "lamina");
    for what in ["hostNetwork", "hostPID", "hostIPC", "volumes"] {
        assert!(pod.get(what).is_none(), "{what}");
    }

    let containers = pod["containers"].as_array().expect("containers");
    let [container] = containers.as_slice() else { panic!("{containers:?}") };
    let rights =
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container["securityContext"], rights);
    let (cpu, memory) = (&container["resources"]["requests"]["cpu"], &container["resources"]["requests"]["memory"]);
    assert!(cpu.is_string() && memory.is_string());
    let disks = lamina::controller::room::MIB;
    assert_eq!(container["resources"]["limits"]["memory"], format!("{}Mi", 512 + disks), "all else, and disks");
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "http"}), "{probe}");
    }
    let port = container["ports"].as_array().and_then(|ports| ports.iter().find(|port| port["name"] == "http"));
    assert_eq!(port.expect("the port of the probes")["containerPort"], 8080, "where `run` listens");
}
