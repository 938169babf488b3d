//! What the real API server accepts and refuses, in the words that a user reads: schema, rules on the CRDs, admission policies, roles.
//!
//! Each rule has a case that passes and one that is refused. Longer than other files, since it is two tables.
//! Words are matched in part: the server adds lines of its own.

use std::collections::BTreeSet;
use std::fmt::Debug;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use lamina::api::{Connector, FIELD_MANAGER, Phase, PlatformLayer};
use lamina::local::Who;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{common, crds};

fn layer(name: &str) -> Value {
    json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": name},
        "spec": {
            "version": "1", "purpose": "Publishing", "connectorRef": {"name": "lab"},
            "platforms": {"provisioningService": "PVS", "connectionBroker": "XenDesktop"},
            "osLayer": {"name": "Windows 11", "version": "24H2", "disk": {"name": "win11-24h2"}},
        },
    })
}

fn connector(name: &str) -> Value {
    json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "Connector", "metadata": {"name": name},
        "spec": {
            "endpoints": ["https://xen1.example.com"], "credentialsSecretRef": {"name": "lab"},
            "template": "packaging", "storageRepository": "fast",
        },
    })
}

/// RFC 7396: null removes.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else { return *into = patch.clone() };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            value => merge(&mut into[key], value),
        }
    }
}

/// Accepted if `words` is empty, else refused with these words.
async fn check_spec(client: &Client, namespace: &str, mut object: Value, spec: &Value, words: &str) {
    merge(&mut object["spec"], spec);
    let yaml = object.to_string();
    if words.is_empty() {
        common::apply(client, namespace, &yaml).await;
    } else {
        let refusal = common::refused(client, namespace, &yaml).await;
        assert!(refusal.contains(words), "{spec}\n  should be refused with {words:?}, but it says\n  {refusal}");
    }
}

#[tokio::test]
async fn layers_are_judged_field_by_field() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let long = "x".repeat(101);
    let size = "not a size: a quantity in whole bytes above zero";
    let memory = "not an amount of memory";
    let file = "not a legal file name";
    let disk = "name the disk by uuid or by name";
    let base = "base.version belongs to base.from Version";
    let publishing = "purpose Publishing needs platforms.provisioningService and platforms.connectionBroker";
    let packaging = "purpose Packaging takes the hypervisor only";
    let kms = "kms.rearm is only for images that PVS streams";
    let none = json!({"provisioningService": null, "connectionBroker": null});
    let cases = [
        (json!({}), ""),
        (json!({"nonsense": 1}), ".spec.nonsense: field not declared in schema"),
        (json!({"version": null}), "spec.version: Required value"),
        (json!({"connectorRef": {"name": "a lab"}}), "spec.connectorRef.name"),
        (json!({"connectorRef": {"name": "lab", "namespace": "a.b"}}), "spec.connectorRef.namespace"),
        (json!({"version": 1}), "spec.version"),
        (json!({"version": ""}), "spec.version"),
        (json!({"version": long}), "spec.version: Too long"),
        (json!({"version": "a\nb"}), "spec.version"),
        (json!({"layerName": "Citrix PVS, Windows 11"}), ""),
        (json!({"layerName": long}), "spec.layerName: Too long"),
        (json!({"layerName": "a\u{7}b"}), "spec.layerName"),
        (json!({"description": "x".repeat(4097)}), "spec.description: Too long"),
        (json!({"discard": "0"}), ""),
        (json!({"discard": "1"}), "remove discard to use that name again"),
        (json!({"purpose": "Testing"}), "spec.purpose: Unsupported value"),
        (json!({"purpose": "Packaging", "platforms": none}), ""),
        (json!({"purpose": "Packaging"}), packaging),
        (json!({"purpose": "Packaging", "platforms": {"connectionBroker": null}}), packaging),
        (json!({"platforms": null}), publishing),
        (json!({"platforms": {"connectionBroker": null}}), publishing),
        (json!({"platforms": {"provisioningService": "None", "connectionBroker": "None", "hypervisor": "AWS"}}), ""),
        (json!({"platforms": {"hypervisor": "QEMU"}}), "spec.platforms.hypervisor: Unsupported value"),
        (json!({"kms": {"rearm": true}}), ""),
        (json!({"kms": {"rearm": true}, "platforms": {"provisioningService": "MCS"}}), kms),
        (json!({"kms": {"rearm": true}, "purpose": "Packaging", "platforms": none}), kms),
        (json!({"kms": {}, "platforms": {"provisioningService": "MCS"}}), ""),
        (json!({"base": {"from": "Version", "version": "0"}}), ""),
        (json!({"base": {"from": "Version"}}), base),
        (json!({"base": {"version": "0"}}), base),
        (json!({"osLayer": {"disk": {"name": null, "uuid": "0d1b1b1c-1b1b-4b1b-8b1b-1b1b1b1b1b1b"}}}), ""),
        (json!({"osLayer": {"disk": {"uuid": "0d1b1b1c-1b1b-4b1b-8b1b-1b1b1b1b1b1b"}}}), disk),
        (json!({"osLayer": {"disk": {"name": null}}}), disk),
        (json!({"osLayer": {"disk": {"name": null, "uuid": "win11"}}}), "spec.osLayer.disk.uuid"),
        (json!({"osLayer": {"firmware": "UEFI"}}), ""),
        (json!({"osLayer": {"firmware": "Uefi"}}), "spec.osLayer.firmware: Unsupported value"),
        (json!({"packagingDisk": {"size": "60Gi", "fileName": "pvs layer 1.vhd", "format": "VHD"}}), ""),
        (json!({"packagingDisk": {"size": "much"}}), size),
        (json!({"packagingDisk": {"size": "0"}}), size),
        (json!({"packagingDisk": {"size": "-1Gi"}}), size),
        (json!({"packagingDisk": {"size": "1.5"}}), size),
        (json!({"packagingDisk": {"size": 60}}), "spec.packagingDisk.size"),
        (json!({"packagingDisk": {"fileName": "a/b"}}), file),
        (json!({"packagingDisk": {"fileName": "a\\b"}}), file),
        (json!({"packagingDisk": {"fileName": "a\tb"}}), file),
        (json!({"packagingDisk": {"fileName": "layer."}}), file),
        (json!({"packagingDisk": {"fileName": "Lpt1.vhd"}}), file),
        (json!({"packagingDisk": {"fileName": "lpt10.vhd"}}), ""),
        (json!({"machine": {"cpus": 4, "memory": "8Gi", "networks": ["lan"], "powerOn": false}}), ""),
        (json!({"machine": {"memory": "0"}}), memory),
        (json!({"machine": {"cpus": 0}}), "spec.machine.cpus"),
        (json!({"machine": {"networks": vec!["lan"; 8]}}), "spec.machine.networks: Too many"),
        (json!({"finalize": {"policy": "Never"}}), "spec.finalize.policy: Unsupported value"),
        (json!({"deletionPolicy": "Keep"}), "spec.deletionPolicy: Unsupported value"),
        (json!({"suspend": "yes"}), "spec.suspend"),
        (json!({"steps": [full_step(), {"name": "b", "command": "msiexec /i x.msi /qn"}]}), ""),
        (json!({"steps": (0..32).map(|n| json!({"name": format!("s{n}"), "command": "rem"})).collect::<Vec<_>>()}), ""),
        (json!({"steps": vec![json!({"name": "a", "command": "rem"}); 33]}), "spec.steps: Too many"),
        (
            json!({"steps": vec![json!({"name": "a", "command": "rem"}); 2]}),
            "two steps have one name: give each its own",
        ),
    ];
    for (at, (spec, words)) in cases.iter().enumerate() {
        check_spec(&client, &namespace, layer(&format!("case-{at}")), spec, words).await;
    }
    // The object's own name stands in for layerName, and may be longer than one.
    check_spec(&client, &namespace, layer(&long), &json!({}), "too long for a layer name: set spec.layerName").await;
    check_spec(&client, &namespace, layer(&long), &json!({"layerName": "short"}), "").await;
}

/// A step with every field set.
fn full_step() -> Value {
    json!({
        "name": "tools", "file": "Setup.msi", "successCodes": [0, -1, 4_294_967_295_i64], "reboot": "Always", "timeout": "1h30m",
        "onFailure": "Continue", "retry": true,
        "files": [
            {"name": "Setup.msi", "configMapKeyRef": {"name": "tools", "key": "Setup.msi"}},
            {"name": ".answers-1_.ini", "secretKeyRef": {"name": "answers", "key": "answers.ini"}},
        ],
    })
}

#[tokio::test]
async fn steps_are_judged_field_by_field() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let one = "a step runs one thing: set exactly one of command, powershell and file";
    let device = "a step cannot be named like a device of Windows";
    let extension = "file is run by its extension, which must be .exe, .msi, .msu, .ps1, .cmd or .bat";
    let timeout = "not a timeout: hours, minutes and seconds between 1s and 24h";
    let source = "a file comes from one place: set exactly one of configMapKeyRef and secretKeyRef";
    let file = |name: &str| json!({"name": name, "secretKeyRef": {"name": "s", "key": "k"}});
    let of = |files: Value| json!({"files": files});
    let cases = [
        (json!({}), ""),
        (json!({"command": null}), one),
        (json!({"powershell": "Get-Date\nexit 3010"}), one),
        (json!({"command": null, "powershell": "Get-Date\nexit 3010"}), ""),
        (json!({"command": "rem\ndel *"}), "spec.steps[0].command"),
        (json!({"command": "x".repeat(8001)}), "spec.steps[0].command: Too long"),
        (json!({"command": null, "powershell": "x".repeat(16_385)}), "spec.steps[0].powershell: Too long"),
        (json!({"name": null}), "spec.steps[0].name: Required value"),
        (json!({"name": "Tools"}), "spec.steps[0].name"),
        (json!({"name": "a/b"}), "spec.steps[0].name"),
        (json!({"name": "x".repeat(64)}), "spec.steps[0].name: Too long"),
        (json!({"name": "con"}), device),
        (json!({"name": "com10"}), ""),
        (json!({"command": null, "file": "a.exe"}), "file names none of the step's files"),
        (json!({"command": null, "file": "A.EXE", "files": [file("A.EXE")]}), ""),
        (json!({"command": null, "file": "a.txt", "files": [file("a.txt")]}), extension),
        (json!({"files": [file("a.txt"), file("A.TXT")]}), "two files of a step have one name"),
        (of(json!((0..32).map(|n| file(&format!("f{n}"))).collect::<Vec<_>>())), ""),
        (of(json!((0..33).map(|n| file(&format!("f{n}"))).collect::<Vec<_>>())), "spec.steps[0].files: Too many"),
        (of(json!([file("a/b")])), "spec.steps[0].files[0].name"),
        (of(json!([file("..")])), "spec.steps[0].files[0].name"),
        (of(json!([file("-a")])), "spec.steps[0].files[0].name"),
        (of(json!([file("~step.ps1")])), "spec.steps[0].files[0].name"),
        (of(json!([file("Lpt1.txt")])), "a file cannot be named like a device of Windows"),
        (of(json!([{"name": "a"}])), source),
        (
            of(
                json!([{"name": "a", "secretKeyRef": {"name": "s", "key": "k"}, "configMapKeyRef": {"name": "s", "key": "k"}}]),
            ),
            source,
        ),
        (of(json!([{"name": "a", "secretKeyRef": {"name": "../s", "key": "k"}}])), "files[0].secretKeyRef.name"),
        (of(json!([{"name": "a", "configMapKeyRef": {"name": "s", "key": "k/l"}}])), "files[0].configMapKeyRef.key"),
        (json!({"successCodes": []}), "spec.steps[0].successCodes"),
        (json!({"successCodes": [4_294_967_296_i64]}), "spec.steps[0].successCodes[0]"),
        (json!({"successCodes": [-2_147_483_649_i64]}), "spec.steps[0].successCodes[0]"),
        (json!({"reboot": "Sometimes"}), "spec.steps[0].reboot: Unsupported value"),
        (json!({"onFailure": "Retry"}), "spec.steps[0].onFailure: Unsupported value"),
        (json!({"timeout": "90m"}), ""),
        (json!({"timeout": "24h"}), ""),
        (json!({"timeout": "24h1s"}), timeout),
        (json!({"timeout": "0s"}), timeout),
        (json!({"timeout": "1d"}), timeout),
        (json!({"timeout": "1.5h"}), timeout),
        (json!({"timeout": "-1h"}), timeout),
        (json!({"timeout": 60}), "spec.steps[0].timeout"),
        (json!({"retry": "yes"}), "spec.steps[0].retry"),
        (json!({"password": "x"}), ".spec.steps[0].password: field not declared in schema"),
    ];
    for (at, (change, words)) in cases.iter().enumerate() {
        let mut step = json!({"name": "a", "command": "rem"});
        merge(&mut step, change);
        check_spec(&client, &namespace, layer(&format!("case-{at}")), &json!({"steps": [step]}), words).await;
    }
    let made = common::apply(&client, &namespace, &layer("defaults").to_string()).await;
    assert!(serde_json::to_value(&made[0]).unwrap()["spec"].get("steps").is_none(), "no steps, no field");
    let mut plain = layer("plain");
    plain["spec"]["steps"] = json!([{"name": "a", "command": "rem"}]);
    let made = common::apply(&client, &namespace, &plain.to_string()).await;
    let defaults = json!([{
        "name": "a", "command": "rem", "successCodes": [0, 3010], "reboot": "IfRequested", "timeout": "1h", "onFailure": "Stop",
        "retry": false,
    }]);
    assert_eq!(serde_json::to_value(&made[0]).unwrap()["spec"]["steps"], defaults);
}

#[tokio::test]
async fn connectors_are_judged_field_by_field() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let url = "each endpoint is an address like https://xen1.example.com";
    let tls = "choose one of caBundle, caBundleRef, fingerprintsSHA256 and insecureSkipVerify";
    let selector = "allowedNamespaces.selector belongs to from Selector";
    let labels = json!({"matchLabels": {"team": "images"}});
    let cases = [
        (json!({}), ""),
        (json!({"password": "x"}), ".spec.password: field not declared in schema"),
        (json!({"template": null}), "spec.template: Required value"),
        (json!({"endpoints": []}), "spec.endpoints"),
        (json!({"endpoints": vec!["https://x"; 17]}), "spec.endpoints: Too many"),
        (json!({"endpoints": ["https://xen1.example.com:8443/", "https://10.0.0.1", "https://[fd00::1]"]}), ""),
        (json!({"endpoints": ["http://xen1.example.com"]}), url),
        (json!({"endpoints": ["xen1.example.com"]}), url),
        (json!({"endpoints": ["https://xen1.example.com", "https://xen2.example.com/jsonrpc"]}), url),
        (json!({"endpoints": ["https://root@xen1.example.com"]}), url),
        (json!({"endpoints": ["https://root:secret@xen1.example.com"]}), url),
        (json!({"endpoints": ["https://xen1.example.com/?a=b"]}), url),
        (json!({"tls": {"caBundle": "-----BEGIN CERTIFICATE-----"}}), ""),
        (json!({"tls": {"caBundleRef": {"name": "ca"}}}), ""),
        (json!({"tls": {"fingerprintsSHA256": ["ab".repeat(32), vec!["AB"; 32].join(":")]}}), ""),
        (json!({"tls": {"fingerprintsSHA256": ["ab"]}}), "spec.tls.fingerprintsSHA256[0]"),
        (json!({"tls": {"insecureSkipVerify": true}}), ""),
        (json!({"tls": {"insecureSkipVerify": false, "caBundle": "x"}}), ""),
        (json!({"tls": {"insecureSkipVerify": true, "caBundle": "x"}}), tls),
        (json!({"tls": {"caBundleRef": {"name": "ca"}, "caBundle": "x"}}), tls),
        // They come into commands that are printed, and into addresses of the API.
        (json!({"credentialsSecretRef": {"name": "x; rm -r $(HOME)"}}), "spec.credentialsSecretRef.name"),
        (json!({"credentialsSecretRef": {"name": "../lab"}}), "spec.credentialsSecretRef.name"),
        (json!({"tls": {"caBundleRef": {"name": "CA", "key": "ca.crt"}}}), "spec.tls.caBundleRef.name"),
        (json!({"tls": {"caBundleRef": {"name": "my.ca-1", "key": "$x"}}}), "spec.tls.caBundleRef.key"),
        (json!({"allowedNamespaces": {"from": "All"}}), ""),
        (json!({"allowedNamespaces": {"from": "Selector", "selector": labels}}), ""),
        (json!({"allowedNamespaces": {"from": "Selector"}}), selector),
        (json!({"allowedNamespaces": {"selector": labels}}), selector),
        (json!({"limits": {"machines": 0}}), "spec.limits.machines"),
    ];
    for (at, (spec, words)) in cases.iter().enumerate() {
        check_spec(&client, &namespace, connector(&format!("case-{at}")), spec, words).await;
    }
}

#[tokio::test]
async fn fresh_objects_are_complete_and_not_yet_ready() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let made = common::apply(&client, &namespace, &layer("fresh").to_string()).await;
    let made = serde_json::to_value(&made[0]).unwrap();
    assert_eq!(made["status"], json!({"observedGeneration": -1}));
    let defaults = json!({
        "base": {"from": "Latest"}, "packagingDisk": {}, "machine": {"powerOn": true}, "finalize": {"policy": "Manual"},
        "integrity": "Enforce", "deletionPolicy": "Retain", "deletionProtection": false, "suspend": false,
    });
    let mut spec = made["spec"].clone();
    merge(&mut spec, &defaults);
    assert_eq!(spec, made["spec"], "every default is there");
    assert_eq!(made["spec"]["platforms"]["hypervisor"], "XenServer");

    let made = common::apply(&client, &namespace, &connector("fresh").to_string()).await;
    let made = serde_json::to_value(&made[0]).unwrap();
    assert_eq!(made["status"], json!({"observedGeneration": -1}));
    assert_eq!(made["spec"]["allowedNamespaces"], json!({"from": "Same"}));
    assert_eq!(made["spec"]["limits"], json!({"machines": 10}));
}

/// A layer in that phase, as the controller would have written it.
async fn stored(client: &Client, namespace: &str, name: &str, phase: Phase, versions: &[&str]) -> Api<PlatformLayer> {
    common::apply(client, namespace, &layer(name).to_string()).await;
    let layers: Api<PlatformLayer> = Api::namespaced(client.clone(), namespace);
    write_status(&layers, name, phase, versions).await;
    layers
}

async fn write_status(layers: &Api<PlatformLayer>, name: &str, phase: Phase, versions: &[&str]) {
    let versions: Vec<_> =
        versions.iter().map(|v| json!({"version": v, "disk": "u", "finalizedAt": "2026-01-02T03:04:05Z"})).collect();
    let status = json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer",
        "status": {"observedGeneration": 1, "phase": phase, "versions": versions},
    });
    layers
        .patch_status(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&status))
        .await
        .expect("a status write");
}

#[tokio::test]
async fn changes_are_judged_by_how_far_the_layer_is() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let fixed_disk = "osLayer, base and packagingDisk are fixed once the disk of this version is made";
    let fixed_purpose = "purpose and platforms of a finalized version are fixed";
    let fixed_connector = "connectorRef is fixed once a disk of this layer exists";
    let fixed_name = "osLayer.name is fixed for the life of the layer";
    let in_work = |phase| {
        format!("version '1' is in work ({phase}): finalize it first, or set spec.discard to '1' to throw it away")
    };
    let (running, awaiting) = (in_work(Phase::MachineRunning), in_work(Phase::AwaitingFinalize));
    let fixed_steps = "steps are fixed once the machine of this version was started";
    let steps = json!({"steps": [{"name": "a", "command": "rem"}]});
    let steps_of_2 = json!({"steps": [{"name": "a", "command": "rem"}], "version": "2"});
    let discarding = json!({"steps": [{"name": "a", "command": "rem"}], "version": "2", "discard": "1"});
    let fixed_kms = "kms.rearm can only be switched off once the machine of this version was started";
    let rearm = json!({"kms": {"rearm": true}});
    let other_name = json!({"osLayer": {"name": "Windows 10"}});
    let other_connector = json!({"connectorRef": {"name": "other"}});
    let bigger = json!({"packagingDisk": {"size": "90Gi"}});
    let broker = json!({"platforms": {"connectionBroker": "XenApp"}});
    let cases: Vec<(Phase, &[&str], Value, &str)> = vec![
        (Phase::Pending, &[], json!({"version": "2"}), ""),
        (Phase::Finalized, &["1"], json!({"version": "2"}), ""),
        (Phase::MachineRunning, &[], json!({"version": "2"}), &running),
        (Phase::AwaitingFinalize, &[], json!({"version": "2", "discard": "0"}), &awaiting),
        (Phase::MachineRunning, &[], json!({"version": "2", "discard": "1"}), ""),
        (Phase::Pending, &[], bigger.clone(), ""),
        (Phase::DiskCreated, &[], bigger.clone(), fixed_disk),
        (Phase::DiskCreated, &[], json!({"base": {"from": "OSLayer"}}), fixed_disk),
        (Phase::Finalized, &["1"], json!({"osLayer": {"version": "25H2"}}), fixed_disk),
        (Phase::Finalized, &["1"], json!({"osLayer": {"version": "25H2"}, "version": "2"}), ""),
        (Phase::MachineRunning, &[], broker.clone(), ""),
        (Phase::Finalized, &["1"], broker.clone(), fixed_purpose),
        (Phase::Finalized, &["1"], json!({"platforms": {"connectionBroker": "XenApp"}, "version": "2"}), ""),
        (Phase::Pending, &[], other_connector.clone(), ""),
        (Phase::DiskCreated, &[], other_connector.clone(), fixed_connector),
        (Phase::Pending, &["0"], other_connector.clone(), fixed_connector),
        (Phase::Pending, &[], other_name.clone(), ""),
        (Phase::Pending, &["0"], other_name.clone(), fixed_name),
        (Phase::DiskCreated, &[], other_name.clone(), fixed_name),
        (
            Phase::MachineRunning,
            &[],
            json!({"description": "new words", "suspend": true, "deletionPolicy": "Orphan"}),
            "",
        ),
        (Phase::Pending, &[], steps.clone(), ""),
        (Phase::DiskCreated, &[], steps.clone(), ""),
        (Phase::MachineRunning, &[], steps.clone(), fixed_steps),
        (Phase::AwaitingFinalize, &[], steps.clone(), fixed_steps),
        (Phase::Finalized, &["1"], steps, fixed_steps),
        (Phase::Finalized, &["1"], steps_of_2, ""),
        (Phase::MachineRunning, &[], discarding, ""),
        (Phase::DiskCreated, &[], rearm.clone(), ""),
        (Phase::MachineRunning, &[], rearm.clone(), fixed_kms),
        (Phase::AwaitingFinalize, &[], rearm.clone(), fixed_kms),
        (Phase::Finalized, &["1"], rearm, fixed_kms),
        (Phase::MachineRunning, &[], json!({"kms": {"rearm": false}}), ""),
        (Phase::Finalized, &["1"], json!({"kms": {"rearm": true}, "version": "2"}), ""),
        (Phase::MachineRunning, &[], json!({"kms": {"rearm": true}, "version": "2", "discard": "1"}), ""),
        (Phase::MachineRunning, &[], json!({"machine": {"restartToken": "again"}, "comment": "CHG-1"}), ""),
    ];
    for (at, (phase, versions, spec, words)) in cases.into_iter().enumerate() {
        let name = format!("case-{at}");
        let layers = stored(&client, &namespace, &name, phase, versions).await;
        let asked = layers.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await;
        match asked {
            Ok(_) => assert!(words.is_empty(), "{phase} {spec}\n  should be refused with {words:?}"),
            Err(error) => {
                let refusal = error.to_string();
                assert!(!words.is_empty() && refusal.contains(words), "{phase} {spec}\n  {words:?}, not\n  {refusal}");
            }
        }
    }
}

/// A disk that is recorded and waits for its size, which may be wrong; and a rearm that Windows has none left for.
#[tokio::test]
async fn what_a_person_may_take_back_can_be_taken_back() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let layers = stored(&client, &namespace, "made", Phase::Pending, &[]).await;
    let change = async |spec: Value| {
        let patched = layers.patch("made", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await;
        patched.map(|_| ()).map_err(|e| e.to_string())
    };
    let status = async |status: Value| {
        let patch = Patch::Merge(json!({"status": status}));
        layers.patch_status("made", &PatchParams::default(), &patch).await.expect("a status write");
    };
    change(json!({"kms": {"rearm": true}, "osLayer": {"version": "25H2"}})).await.expect("nothing is made yet");
    status(json!({"disk": {"uuid": "w", "version": "1"}})).await;
    change(json!({"packagingDisk": {"size": "90Gi"}})).await.expect("it does not have its size yet");
    let fixed = "only its size can still be corrected";
    for spec in [
        json!({"osLayer": {"version": "24H2"}}),
        json!({"base": {"from": "OSLayer"}}),
        json!({"packagingDisk": {"fileName": "other"}}),
        json!({"packagingDisk": {"format": "VHD"}}),
    ] {
        let refusal = change(spec.clone()).await.expect_err("it is made");
        assert!(refusal.contains(fixed), "{spec}: {refusal}");
    }
    let elsewhere = change(json!({"connectorRef": {"name": "other"}})).await.expect_err("its disk is on this pool");
    assert!(elsewhere.contains("connectorRef is fixed once a disk of this layer exists"), "{elsewhere}");
    change(json!({"version": "2", "osLayer": {"version": "24H2"}})).await.expect("another version");
    for phase in [Phase::MachineRunning, Phase::AwaitingFinalize] {
        status(json!({"phase": phase})).await;
        change(json!({"kms": {"rearm": false}})).await.expect("less than was asked for");
        assert!(change(json!({"kms": {"rearm": true}})).await.is_err_and(|e| e.contains("kms.rearm")), "{phase}");
        status(json!({"phase": Phase::Pending})).await;
        change(json!({"kms": {"rearm": true}})).await.expect("not started");
    }
}

/// No rule may stand in the way of the controller: spec is unchanged, so every write must pass.
#[tokio::test]
async fn status_and_finalizer_can_always_be_written() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let layers = stored(&client, &namespace, "walk", Phase::Pending, &[]).await;
    for phase in Phase::ALL {
        write_status(&layers, "walk", phase, if phase == Phase::Finalized { &["1"] } else { &[] }).await;
        for finalizers in [json!(["lamina.dev/pool"]), json!([])] {
            let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
            layers.patch("walk", &PatchParams::default(), &patch).await.expect("the finalizer is written");
        }
    }
}

/// Every field of both statuses, written as the controller writes it: a schema that lacks one, or means another type, would refuse it. A
/// field that is in the schema and not in here is told by its path.
#[tokio::test]
async fn full_statuses_come_back_as_they_were_written() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let time = "2026-01-02T03:04:05Z";
    let condition = |type_| json!({"type": type_, "status": "True", "reason": "Finalized", "message": "words", "lastTransitionTime": time, "observedGeneration": 1});
    let base = json!({"from": "Version", "version": "0", "uuid": "s"});
    let status = json!({
        "observedGeneration": 1, "phase": "AwaitingFinalize", "pool": "p", "conditions": [condition("Ready")],
        "operation": {
            "step": "FreezeDisk", "progress": 35, "since": time, "opid": "o", "source": "u", "agentStart": "1.5", "bootID": "7@t",
        },
        "disk": {
            "uuid": "u", "name": "n", "fileName": "f", "format": "VHD", "storageRepository": "fast", "storageRepositoryUUID": "s",
            "virtualSize": 64_424_509_440_i64, "utilisation": 12_884_901_888_i64, "base": base, "version": "1", "worked": true,
        },
        "configDisk": {"uuid": "u", "version": "1", "storageRepositoryUUID": "s"},
        "machine": {
            "uuid": "u", "name": "n", "host": "h", "powerState": "Halted", "address": "10.0.0.5",
            "tools": {"version": "9.4", "seen": true}, "restartToken": "again", "agentStart": "1.5",
        },
        "steps": [{"name": "tools", "state": "Failed", "exitCode": -1}, {"name": "agent", "state": "Pending"}],
        "integrity": {
            "source": "ConfigDisk", "bootID": "7@t",
            "findings": [{"reason": "Bit8192", "detail": "d", "remedy": "r"}],
        },
        "current": {"version": "0", "disk": "u", "finalizedAt": time},
        "versions": [{
            "version": "0", "disk": "u", "base": base, "osVersion": "24H2", "storageRepositoryUUID": "s", "size": 64_424_509_440_i64,
            "rearmsLeft": 0, "finalizedAt": time, "comment": "c", "lost": true,
        }],
        "history": [{"at": time, "phase": "Finalized", "reason": "Finalized", "message": "words", "comment": "c"}],
    });
    common::apply(&client, &namespace, &layer("full").to_string()).await;
    assert_round_trip::<PlatformLayer>(&client, &namespace, "full", &status).await;

    let named = json!([{"name": "n", "uuid": "u"}]);
    let status = json!({
        "observedGeneration": 1, "conditions": [condition("Ready")], "product": "XenServer 8", "poolUUID": "p",
        "coordinator": "xen1 (10.0.0.1)", "layers": 0,
        "inventory": {"templates": named, "storageRepositories": named, "networks": named},
    });
    common::apply(&client, &namespace, &connector("full").to_string()).await;
    assert_round_trip::<Connector>(&client, &namespace, "full", &status).await;
}

async fn assert_round_trip<K>(client: &Client, namespace: &str, name: &str, status: &Value)
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let kind = K::kind(&()).to_string();
    let (mut there, mut absent) = (BTreeSet::new(), vec![]);
    paths(&format!("{kind}.status"), status, &mut there);
    let schemas = crds::schemas();
    let (_, schema) = schemas.iter().find(|(of, _)| *of == kind).unwrap();
    crds::each_field(&kind, schema, &mut |path, _| {
        if path.starts_with(&format!("{kind}.status.")) && !there.contains(path) {
            absent.push(path.to_owned());
        }
    });
    assert!(absent.is_empty(), "this status lacks {absent:#?}");
    let document = json!({"apiVersion": K::api_version(&()), "kind": kind, "status": status});
    let objects: Api<K> = Api::namespaced(client.clone(), namespace);
    let written =
        objects.patch_status(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&document)).await;
    let read = serde_json::to_value(written.expect("the status is accepted")).unwrap();
    assert_eq!(&read["status"], status, "{kind}: read into the types and written out again");
}

/// Where something is, written as `crds::each_field` does.
fn paths(at: &str, value: &Value, into: &mut BTreeSet<String>) {
    into.insert(at.to_owned());
    for (name, field) in value.as_object().into_iter().flatten() {
        paths(&format!("{at}.{name}"), field, into);
    }
    for item in value.as_array().into_iter().flatten() {
        paths(&format!("{at}[]"), item, into);
    }
}

#[tokio::test]
async fn layers_are_found_by_connector_and_by_phase() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let layers = stored(&client, &namespace, "one", Phase::MachineRunning, &[]).await;
    stored(&client, &namespace, "two", Phase::Finalized, &["1"]).await;
    for (selector, names) in [
        ("spec.connectorRef.name=lab", vec!["one", "two"]),
        ("spec.connectorRef.name=other", vec![]),
        ("status.phase=MachineRunning", vec!["one"]),
    ] {
        let found = layers.list(&ListParams::default().fields(selector)).await.unwrap();
        assert_eq!(found.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), names, "{selector}");
    }
}

#[tokio::test]
async fn a_protected_layer_is_not_deleted() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    let layers = stored(&client, &namespace, "kept", Phase::Finalized, &["1"]).await;
    let protect = |on: bool| Patch::Merge(json!({"spec": {"deletionProtection": on}}));
    layers.patch("kept", &PatchParams::default(), &protect(true)).await.unwrap();
    let refusal = layers.delete("kept", &DeleteParams::default()).await.unwrap_err().to_string();
    assert!(refusal.contains("layer 'kept' is protected: set spec.deletionProtection to false first"), "{refusal}");
    layers.patch("kept", &PatchParams::default(), &protect(false)).await.unwrap();
    layers.delete("kept", &DeleteParams::default()).await.expect("it may go");
}

#[tokio::test]
async fn a_connector_in_use_is_not_deleted() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    common::apply(&client, &namespace, &connector("lab").to_string()).await;
    let connectors: Api<Connector> = Api::namespaced(client, &namespace);
    let used_by = async |layers: i32| {
        let status = json!({"apiVersion": "lamina.dev/v1alpha1", "kind": "Connector", "status": {"layers": layers}});
        connectors.patch_status("lab", &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&status)).await.unwrap();
    };
    used_by(2).await;
    let refusal = connectors.delete("lab", &DeleteParams::default()).await.unwrap_err().to_string();
    assert!(refusal.contains("Connector 'lab' is used by 2 layer(s): delete those first"), "{refusal}");
    used_by(0).await;
    connectors.delete("lab", &DeleteParams::default()).await.expect("it may go");
}

/// Binds the role to a user of the same name in the namespace; returns that user's client.
async fn user(admin: &Client, namespace: &str, role: &str) -> Client {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}],
    });
    common::apply(admin, namespace, &binding.to_string()).await;
    common::client(Who::User { name: role, groups: &["system:authenticated"] }).await
}

#[tokio::test]
async fn to_approve_is_a_right_of_its_own() {
    let admin = common::installed().await;
    let namespace = common::namespace(&admin).await;
    let editor = user(&admin, &namespace, "lamina-editor").await;
    let approver = user(&admin, &namespace, "lamina-approver").await;
    for (who, verb) in [("lamina-editor", "create"), ("lamina-approver", "approve")] {
        soon_allowed(&admin, who, verb, "lamina.dev", "platformlayers", &namespace).await;
    }
    for (at, (spec, words)) in [
        (
            json!({"finalize": {"approved": "1"}}),
            "spec.finalize.approved may only be changed by somebody with the verb approve",
        ),
        (
            json!({"finalize": {"policy": "OnShutdown"}}),
            "spec.finalize.policy OnShutdown may only be set by somebody with the verb approve",
        ),
        (json!({"integrity": "Warn"}), "spec.integrity Warn may only be set by somebody with the verb approve"),
        (json!({"integrity": "Skip"}), "spec.integrity Skip may only be set by somebody with the verb approve"),
        (
            json!({"finalize": {"answeredBoot": "7@20260101T00:00:00Z"}}),
            "spec.finalize.answeredBoot may only be changed by somebody with the verb approve",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // On create, by an editor.
        check_spec(&editor, &namespace, layer(&format!("new-{at}")), &spec, words).await;
        // On update: not by an editor, but by an approver.
        let name = format!("case-{at}");
        let mine: Api<PlatformLayer> = Api::namespaced(editor.clone(), &namespace);
        let theirs: Api<PlatformLayer> = Api::namespaced(approver.clone(), &namespace);
        common::apply(&editor, &namespace, &layer(&name).to_string()).await;
        let patch = Patch::Merge(json!({"spec": spec}));
        let refusal = mine.patch(&name, &PatchParams::default(), &patch).await.unwrap_err().to_string();
        assert!(refusal.contains(words), "{refusal}");
        theirs.patch(&name, &PatchParams::default(), &patch).await.expect("an approver may");
        // What was approved stays so when an editor changes something else.
        let other = Patch::Merge(json!({"spec": {"description": "other words"}}));
        mine.patch(&name, &PatchParams::default(), &other).await.expect("an editor may");
    }
    // Back to the careful side needs nobody's leave, but an approval is not an editor's to take away either.
    let mine: Api<PlatformLayer> = Api::namespaced(editor, &namespace);
    for (name, spec, may) in [
        ("case-1", json!({"finalize": {"policy": "Manual"}}), true),
        ("case-3", json!({"integrity": "Enforce"}), true),
        ("case-0", json!({"finalize": {"approved": null}}), false),
    ] {
        let asked = mine.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await;
        assert_eq!(asked.is_ok(), may, "{name} {spec} {asked:?}");
    }
}

/// Type checking by the server itself: a field of a policy that does not exist would only show when it is needed.
#[tokio::test]
async fn policies_are_free_of_type_errors() {
    let client = common::installed().await;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client);
    for name in ["lamina-deletion-protection", "lamina-connector-in-use", "lamina-approval"] {
        let checked = |p: Option<&ValidatingAdmissionPolicy>| {
            p.and_then(|p| p.status.as_ref()).is_some_and(|s| s.type_checking.is_some())
        };
        let policy = common::until(policies.clone(), name, "type-checked", checked).await.unwrap();
        let warnings =
            policy.status.and_then(|s| s.type_checking).and_then(|t| t.expression_warnings).unwrap_or_default();
        assert!(warnings.is_empty(), "{name}: {warnings:#?}");
    }
}

/// The controller has what it needs and no more; people have what the role's name says, by aggregation too.
#[tokio::test]
async fn roles_hold_what_they_promise() {
    let admin = common::installed().await;
    let namespace = common::namespace(&admin).await;
    for role in ["view", "edit", "admin", "lamina-viewer", "lamina-connector-admin"] {
        user(&admin, &namespace, role).await;
    }
    let controller = "system:serviceaccount:lamina-system:lamina";
    for (who, verb, group, resource, may) in [
        (controller, "patch", "lamina.dev", "platformlayers", true),
        (controller, "patch", "lamina.dev", "connectors/status", true),
        (controller, "delete", "lamina.dev", "platformlayers", false),
        (controller, "approve", "lamina.dev", "platformlayers", false),
        (controller, "get", "", "secrets", true),
        (controller, "list", "", "secrets", false),
        (controller, "watch", "", "secrets", false),
        (controller, "get", "", "namespaces", true),
        (controller, "patch", "events.k8s.io", "events", true),
        (controller, "update", "coordination.k8s.io", "leases", false),
        ("view", "list", "lamina.dev", "connectors", true),
        ("view", "patch", "lamina.dev", "platformlayers", false),
        ("edit", "create", "lamina.dev", "platformlayers", true),
        ("edit", "approve", "lamina.dev", "platformlayers", false),
        ("edit", "create", "lamina.dev", "connectors", false),
        ("admin", "approve", "lamina.dev", "platformlayers", true),
        ("admin", "create", "lamina.dev", "connectors", true),
        ("admin", "patch", "lamina.dev", "platformlayers/status", false),
        ("lamina-viewer", "watch", "lamina.dev", "platformlayers", true),
        ("lamina-viewer", "create", "lamina.dev", "platformlayers", false),
        ("lamina-connector-admin", "delete", "lamina.dev", "connectors", true),
        ("lamina-connector-admin", "create", "lamina.dev", "platformlayers", false),
    ] {
        // What a role grants comes first: then it is in force when its limits are looked at.
        if may {
            soon_allowed(&admin, who, verb, group, resource, &namespace).await;
        } else {
            assert!(!allowed(&admin, who, verb, group, resource, &namespace).await, "{who} may {verb} {resource}");
        }
    }
    assert!(allowed(&admin, controller, "update", "coordination.k8s.io", "leases", "lamina-system").await);
}

/// Bindings and aggregated roles take a moment.
async fn soon_allowed(admin: &Client, who: &str, verb: &str, group: &str, resource: &str, namespace: &str) {
    common::eventually(&format!("{who} may {verb} {resource}"), async || {
        allowed(admin, who, verb, group, resource, namespace).await.then_some(())
    })
    .await;
}

async fn allowed(admin: &Client, who: &str, verb: &str, group: &str, resource: &str, namespace: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(r, s)| (r, Some(s.to_owned())));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(who.into()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.into()),
                group: Some(group.into()),
                resource: Some(resource.into()),
                subresource,
                namespace: Some(namespace.into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(admin.clone());
    reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

#[tokio::test]
async fn the_examples_are_accepted() {
    let client = common::installed().await;
    let namespace = common::namespace(&client).await;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            common::apply(&client, &namespace, &std::fs::read_to_string(&path).unwrap()).await;
        }
    }
}
