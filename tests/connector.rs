//! Connectors: the real controller, a real API server and a simulated pool. Each fault has its reason and its cure in words, and is gone
//! by itself when its cause is; no test restarts the controller for that. Longer than other files: one check after another.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use lamina::api::condition::{ConditionType as C, check_connector, find};
use lamina::api::{Connector, FINALIZER};
use lamina::controller::Settings;
use lamina::controller::pace::Pace;
use lamina::sim::serve::{self, Sim};
use lamina::sim::session::Account;
use lamina::xapi::wire::Ref;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::common;
use crate::common::rig::{self, PACE, Rig};

/// A condition's status, reason and message.
fn told(connector: &Connector, type_: C) -> (String, String, String) {
    let conditions = connector.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    find(conditions, type_).map(|c| (c.status.clone(), c.reason.clone(), c.message.clone())).unwrap_or_default()
}

fn has(connector: &Connector, type_: C, reason: &str) -> bool {
    told(connector, type_).1 == reason
}

/// Waits for a Connector as wanted; every status on the way obeys the rules.
async fn until(rig: &Rig, what: &str, holds: impl Fn(&Connector) -> bool + Send) -> Connector {
    let found = common::until(rig.connectors(), "lab", what, |c: Option<&Connector>| {
        c.is_some_and(|c| {
            assert_eq!(check_connector(c), Vec::<String>::new(), "{:#?}", c.status);
            holds(c)
        })
    });
    found.await.expect("a connector")
}

async fn ready(rig: &Rig) -> Connector {
    until(rig, "ready", |c| {
        told(c, C::Ready).0 == "True" && c.status.as_ref().and_then(|s| s.observed_generation) == c.metadata.generation
    })
    .await
}

/// Waits until this check fails for this reason, Ready says so too, and the message has these words.
async fn fails(rig: &Rig, check: C, reason: &str, words: &[&str]) -> Connector {
    let found =
        until(rig, reason, |c| told(c, check).0 == "False" && has(c, check, reason) && has(c, C::Ready, reason)).await;
    let message = told(&found, C::Ready).2;
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    found
}

async fn patch(rig: &Rig, spec: Value) {
    let patch = Patch::Merge(json!({ "spec": spec }));
    rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
}

fn secrets(rig: &Rig) -> Api<Secret> {
    Api::namespaced(rig.client.clone(), &rig.namespace)
}

async fn set_password(rig: &Rig, password: Option<&str>) {
    let data = json!({ "data": { "password": password.map(|p| json!(ByteString(p.as_bytes().to_vec()))) } });
    secrets(rig).patch("lab", &PatchParams::default(), &Patch::Merge(data)).await.expect("a patch");
}

/// A rig whose Connector is changed before the controller sees it.
async fn rig(spec: Value) -> Rig {
    let rig = Rig::new().await;
    patch(&rig, spec).await;
    rig
}

fn named(sim: &Sim, class: &str, name: &str) -> Ref {
    let db = sim.pool.db();
    db.all(class).find(|(_, row)| row.get("name_label") == Some(&json!(name))).map(|(r, _)| r.clone()).expect(name)
}

fn set(sim: &Sim, class: &str, row: &Ref, field: &str, value: Value) {
    sim.pool.db().set(class, row, field, value).expect("a field");
}

fn logins(sim: &Sim) -> u64 {
    sim.pool.log.counts().get("session.login_with_password").copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_becomes_ready_and_says_what_it_found() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    let found = ready(&rig).await;
    assert!(found.finalizers().contains(&FINALIZER.to_owned()));
    let status = found.status.expect("a status");
    assert_eq!(status.product.as_deref(), Some("XenServer 8.4.0"));
    assert_eq!(status.coordinator.as_deref(), Some("host1 (127.0.0.1)"));
    assert_eq!(status.layers, Some(0));
    let pool = rig.sim.pool.db().all("pool").next().map(|(_, row)| row["uuid"].clone()).expect("a pool");
    assert_eq!(json!(status.pool_uuid), pool);
    let inventory = status.inventory.expect("an inventory");
    let names = |list: &[lamina::api::connector::Named]| list.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&inventory.templates), ["no-network", "packaging", "with-disk"]);
    let srs = names(&inventory.storage_repositories);
    assert_eq!(srs, ["Local storage on host1", "Local storage on host2", "Local storage on host3", "Shared storage"]);
    assert!(names(&inventory.networks).contains(&"Packaging".to_owned()));
    assert!(!json!(status.conditions).to_string().contains("secret\""), "no secret in a status");

    // What Prometheus reads of it.
    let login = "call=\"session.login_with_password\"";
    assert_eq!(controller.metric(&format!("lamina_xapi_calls_total{{{login},outcome=\"ok\"}}")), 1);
    assert_eq!(controller.metric(&format!("lamina_xapi_call_seconds_count{{{login}}}")), 1);
    let free = format!("lamina_sr_free_bytes{{connector=\"{}/lab\",sr=\"Shared storage\"}}", rig.namespace);
    let sr = named(&rig.sim, "SR", "Shared storage");
    let room = {
        let db = rig.sim.pool.db();
        let of = |field: &str| db.field("SR", &sr, field).ok().and_then(Value::as_u64).expect("a size");
        of("physical_size") - of("physical_utilisation")
    };
    assert_eq!(controller.metric(&free), room);
    let batches = controller.metric("lamina_event_lag_seconds_count");
    set(&rig.sim, "SR", &sr, "name_description", json!("an event"));
    let later = async || (controller.metric("lamina_event_lag_seconds_count") > batches).then_some(());
    common::eventually("its lag is measured", later).await;
}

/// What has not changed is not written, however often it is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_does_not_change_is_not_written() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    ready(&rig).await;
    // Each of these has the Connector looked at again.
    for name in ["one", "two", "three"] {
        rig.layer(name, json!({"connectorRef": {"name": "elsewhere"}})).await;
        rig.until_reason(name, "ConnectorNotFound").await;
        rig.patch(name, json!({"connectorRef": {"name": "lab"}, "suspend": true})).await;
        rig.until_reason(name, "Suspended").await;
        rig.delete(name).await;
        rig.until_gone(name).await;
    }
    rig.meanwhile().await;
    let (looks, writes) = ("lamina_reconciles_total", "lamina_status_writes_total");
    let [looks, writes] = [looks, writes].map(|series| controller.metric(&format!("{series}{{kind=\"connector\"}}")));
    // Connecting, Ready, and how many layers there are: some of the looks.
    assert!(looks > 2 * writes, "{looks} looks, {writes} writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_missing_incomplete_or_wrong_is_told_and_mended() {
    let rig = Rig::new().await;
    let right = secrets(&rig).get("lab").await.expect("the Secret");
    secrets(&rig).delete("lab", &DeleteParams::default()).await.expect("deleted");
    let controller = rig.run().await;
    fails(&rig, C::Authenticated, "CredentialsNotFound", &["'lab'", "kubectl create secret"]).await;

    let mut fresh = Secret { metadata: Default::default(), ..right.clone() };
    fresh.metadata.name = Some("lab".into());
    secrets(&rig).create(&Default::default(), &fresh).await.expect("created");
    ready(&rig).await;
    drop(controller);

    set_password(&rig, None).await;
    let _controller = rig.run().await;
    fails(&rig, C::Authenticated, "CredentialsIncomplete", &["'password'"]).await;
    set_password(&rig, Some("wrong")).await;
    fails(&rig, C::Authenticated, "CredentialsRefused", &["Secret 'lab'"]).await;
    set_password(&rig, Some("secret")).await;
    ready(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_needs_no_restart_and_no_storm_of_log_ins() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    ready(&rig).await;
    let before = logins(&rig.sim);
    rig.sim.pool.accounts.put(Account { name: "root".into(), password: "rotated".into(), role: None });
    let sessions: Vec<Ref> = rig.sim.pool.db().all("session").map(|(r, _)| r.clone()).collect();
    sessions.iter().for_each(|session| rig.sim.pool.db().delete("session", session));
    fails(&rig, C::Authenticated, "CredentialsRefused", &[]).await;
    // The mirror goes on trying, the Secret is read again and again: the refused pair is not sent for that.
    let looks = || controller.metric("lamina_reconciles_total{kind=\"connector\"}");
    let enough = looks() + 8;
    common::eventually("some looks at the Secret", async || (looks() >= enough).then_some(())).await;
    assert!(logins(&rig.sim) <= before + 2, "{} log-ins", logins(&rig.sim) - before);
    set_password(&rig, Some("rotated")).await;
    ready(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_judged_as_the_spec_says() {
    let rig = rig(json!({"tls": {"fingerprintsSHA256": ["ab".repeat(32)]}})).await;
    let _controller = rig.run().await;
    let seen = rig.sim.hosts[0].fingerprint.replace(':', "");
    fails(&rig, C::Reachable, "FingerprintMismatch", &[&seen, "spec.tls.fingerprintsSHA256"]).await;
    patch(&rig, json!({"tls": {"fingerprintsSHA256": [seen]}})).await;
    ready(&rig).await;

    patch(&rig, json!({"tls": null})).await;
    fails(&rig, C::Reachable, "CertificateUntrusted", &["spec.tls"]).await;
    let other = Sim::start(serve::Options::default()).await.expect("another pool");
    patch(&rig, json!({"tls": {"caBundle": other.ca_pem()}})).await;
    fails(&rig, C::Reachable, "CertificateUntrusted", &[]).await;
    patch(&rig, json!({"tls": {"caBundle": "no certificate"}})).await;
    fails(&rig, C::Reachable, "CABundleInvalid", &[]).await;
    patch(&rig, json!({"tls": {"caBundle": rig.sim.ca_pem()}})).await;
    ready(&rig).await;

    patch(&rig, json!({"tls": {"caBundle": null, "caBundleRef": {"name": "authority"}}})).await;
    fails(&rig, C::Reachable, "CABundleNotFound", &["'authority'", "'ca.crt'"]).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authority"}, "data": {"ca.crt": rig.sim.ca_pem()}});
    rig.apply(&map.to_string()).await;
    let found = ready(&rig).await;
    assert_eq!(told(&found, C::TLSInsecure).0, "");

    patch(&rig, json!({"tls": {"caBundleRef": null, "insecureSkipVerify": true}})).await;
    until(&rig, "insecure", |c| told(c, C::TLSInsecure).0 == "True" && told(c, C::Ready).0 == "True").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_does_not_answer_is_tried_until_it_does() {
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let rig = rig(json!({"endpoints": [format!("https://{port}")]})).await;
    let _controller = rig.run().await;
    fails(&rig, C::Reachable, "Unreachable", &[&port.to_string(), "connection refused"]).await;

    let (door, to) = (TcpListener::bind(port).await.expect("the port"), rig.sim.hosts[0].address);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = door.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.expect("the pool");
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    ready(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_pool_is_told_from_one() {
    let server = common::cluster().await.config(lamina::local::Who::Admin).await.expect("a config").cluster_url;
    let url = format!("https://{}", server.authority().expect("an authority"));
    let rig = rig(json!({"endpoints": [url], "tls": {"fingerprintsSHA256": null, "insecureSkipVerify": true}})).await;
    let _controller = rig.run().await;
    fails(&rig, C::Reachable, "NotXenServer", &["spec.endpoints"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_leads_to_its_coordinator() {
    let rig = Rig::new().await;
    patch(&rig, json!({"endpoints": [rig.sim.urls()[1]]})).await;
    // Nobody listens where the coordinator says it is.
    let coordinator = named(&rig.sim, "host", "host1");
    set(&rig.sim, "host", &coordinator, "address", json!("127.0.0.77"));
    let _controller = rig.run().await;
    let found = fails(&rig, C::CoordinatorFound, "CoordinatorUnknown", &["127.0.0.77"]).await;
    assert_eq!(told(&found, C::Reachable).0, "True");
    assert_eq!(told(&found, C::Authenticated).0, "Unknown");
    set(&rig.sim, "host", &coordinator, "address", json!("127.0.0.1"));
    let found = ready(&rig).await;
    assert_eq!(found.status.and_then(|s| s.coordinator).as_deref(), Some("host1 (127.0.0.1)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_template_has_its_reason() {
    let rig = rig(json!({"template": "with-disk"})).await;
    let _controller = rig.run().await;
    fails(&rig, C::TemplateValid, "TemplateHasDisks", &["'with-disk'"]).await;
    for (template, reason, word) in [
        ("no-network", "TemplateWithoutNetwork", "network card"),
        ("Packaging", "TemplateNotFound", "did you mean 'packaging'?"),
        ("Windows 11", "TemplateNotCustom", "XenServer's own"),
    ] {
        patch(&rig, json!({ "template": template })).await;
        fails(&rig, C::TemplateValid, reason, &[word]).await;
    }
    patch(&rig, json!({"template": "packaging"})).await;
    ready(&rig).await;

    let template = named(&rig.sim, "VM", "packaging");
    let drive = json!({
        "VM": template, "VDI": Ref::null(), "userdevice": "0", "bootable": false, "mode": "RO", "type": "CD", "empty": true,
        "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
    });
    let drive = rig.hands.call("VBD.create", json!([drive])).await;
    fails(&rig, C::TemplateValid, "TemplateHasDisks", &["device 0", "xe vbd-destroy"]).await;
    rig.hands.call("VBD.destroy", json!([drive])).await;
    ready(&rig).await;

    let other = named(&rig.sim, "VM", "no-network");
    set(&rig.sim, "VM", &other, "name_label", json!("packaging"));
    fails(&rig, C::TemplateValid, "TemplateAmbiguous", &["use the uuid"]).await;
    set(&rig.sim, "VM", &other, "name_label", json!("no-network"));
    ready(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_is_detached_full_or_unfit_is_told_and_comes_back() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    ready(&rig).await;
    let sr = named(&rig.sim, "SR", "Shared storage");
    let pbds = rig.sim.pool.db().links("SR", &sr, "PBDs").expect("PBDs");
    pbds.iter().for_each(|pbd| set(&rig.sim, "PBD", pbd, "currently_attached", json!(false)));
    let found = fails(&rig, C::StorageReady, "StorageDetached", &["'Shared storage'", "xe pbd-plug"]).await;
    assert_eq!(
        told(&found, C::ToolsISOFound),
        ("Unknown".into(), "NotChecked".into(), told(&found, C::ToolsISOFound).2)
    );
    pbds.iter().for_each(|pbd| set(&rig.sim, "PBD", pbd, "currently_attached", json!(true)));
    ready(&rig).await;

    let size = rig.sim.pool.db().get("SR", &sr).expect("a row")["physical_size"].clone();
    set(&rig.sim, "SR", &sr, "physical_size", json!(0));
    fails(&rig, C::StorageReady, "StorageFull", &["free space"]).await;
    set(&rig.sim, "SR", &sr, "physical_size", size);
    ready(&rig).await;

    for (name, reason) in [("ISO library", "StorageIsISO"), ("shared storage", "StorageNotFound")] {
        patch(&rig, json!({ "storageRepository": name })).await;
        fails(&rig, C::StorageReady, reason, &[]).await;
    }
    patch(&rig, json!({"storageRepository": "Shared storage", "toolsISO": "Guest-tools.iso"})).await;
    fails(&rig, C::ToolsISOFound, "ToolsISONotFound", &["did you mean 'guest-tools.iso'?"]).await;
    patch(&rig, json!({"toolsISO": null})).await;
    ready(&rig).await;
}

fn hide_tools(rig: &Rig) {
    let mut db = rig.sim.pool.db();
    let of_tools = db.all("VDI").filter(|(_, row)| row["name_label"] == json!("guest-tools.iso"));
    let isos: Vec<Ref> = of_tools.map(|(iso, _)| iso.clone()).collect();
    isos.iter().for_each(|iso| db.delete("VDI", iso));
}

/// xapi.md 10: what somebody put into an ISO repository has no row before a scan.
#[tokio::test(flavor = "multi_thread")]
async fn a_tools_iso_without_a_row_is_found_by_one_scan() {
    let rig = Rig::new().await;
    let scans = || rig.sim.pool.log.counts().get("Async.SR.scan").copied().unwrap_or_default();
    hide_tools(&rig);
    let _controller = rig.run().await;
    let found = ready(&rig).await;
    assert!(told(&found, C::ToolsISOFound).2.contains("guest-tools.iso"), "{found:?}");
    let once = scans();
    assert_eq!(once, 2, "each ISO repository");
    patch(&rig, json!({"toolsISO": "mine.iso"})).await;
    fails(&rig, C::ToolsISOFound, "ToolsISONotFound", &["'mine.iso'", "xe sr-scan"]).await;
    patch(&rig, json!({"limits": {"machines": 3}})).await;
    let seen = |c: &Connector| c.status.as_ref().and_then(|s| s.observed_generation);
    until(&rig, "looked at again", |c| c.metadata.generation == seen(c)).await;
    assert_eq!(scans(), 2 * once, "once for each name that is wanted");
}

/// A directory far away may take its time: that is waited for, and not begun a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_takes_long_is_one_scan() {
    let rig = Rig::new().await;
    let scans = || rig.sim.pool.log.counts().get("Async.SR.scan").copied().unwrap_or_default();
    hide_tools(&rig);
    rig.sim.pool.clock.hold("SR.scan/");
    let patient = Pace { capacity: Duration::from_secs(3600), ..PACE };
    let _controller = rig.run_with(Settings { pace: patient, ..rig.settings() }).await;
    common::eventually("scans", async || (scans() == 2).then_some(())).await;
    for machines in [3, 4] {
        patch(&rig, json!({"limits": {"machines": machines}})).await;
        let seen = |c: &Connector| c.status.as_ref().and_then(|s| s.observed_generation);
        let looked = until(&rig, "looked at again", |c| c.metadata.generation == seen(c)).await;
        assert_eq!(told(&looked, C::Ready).1, "Connecting");
    }
    assert_eq!(scans(), 2, "each ISO repository once");
    rig.sim.pool.clock.unhold("SR.scan/");
    ready(&rig).await;
    assert_eq!(scans(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_named() {
    let rig = Rig::new().await;
    let account =
        |role: Option<&str>| Account { name: "root".into(), password: "secret".into(), role: role.map(str::to_owned) };
    rig.sim.pool.accounts.put(account(Some("vm-admin")));
    let _controller = rig.run().await;
    fails(&rig, C::PermissionsSufficient, "PermissionDenied", &["sr.scan", "vm-power-admin"]).await;

    let force = async |value: &str| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"lamina.dev/requestedAt": value}}}));
        rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
    };
    // The session that is open keeps the rights it began with: another one tells.
    rig.sim.pool.accounts.put(account(Some("vm-power-admin")));
    force("1").await;
    let found = until(&rig, "enough", |c| has(c, C::PermissionsSufficient, "PoolOperatorMissing")).await;
    assert_eq!(told(&found, C::Ready).0, "True", "it can be used all the same");
    assert!(told(&found, C::PermissionsSufficient).2.contains("pool.sync_database"));
    // Without a word, after a while.
    rig.sim.pool.accounts.put(account(None));
    until(&rig, "everything", |c| told(c, C::PermissionsSufficient).0 == "True").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pool_at_the_address_is_not_touched_while_layers_rest_on_the_first() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("here", json!({"suspend": true})).await;
    let first =
        until(&rig, "used", |c| told(c, C::Ready).0 == "True" && c.status.as_ref().and_then(|s| s.layers) == Some(1))
            .await;
    let uuid = first.status.and_then(|s| s.pool_uuid).expect("a pool");

    let other = Sim::start(serve::Options::default()).await.expect("another pool");
    let pins: Vec<_> = rig.sim.hosts.iter().chain(&other.hosts).map(|h| h.fingerprint.clone()).collect();
    patch(&rig, json!({"endpoints": [other.urls()[0]], "tls": {"fingerprintsSHA256": pins}})).await;
    let found = fails(&rig, C::CoordinatorFound, "PoolChanged", &[&uuid, "Orphan"]).await;
    assert_eq!(found.status.and_then(|s| s.pool_uuid), Some(uuid));
    let changing: BTreeSet<_> =
        other.pool.log.entries().into_iter().filter(|e| e.number.is_some()).map(|e| e.method).collect();
    assert_eq!(changing, BTreeSet::new());

    patch(&rig, json!({"endpoints": [rig.sim.urls()[0]]})).await;
    ready(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_stays_until_its_last_layer_is_gone() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    ready(&rig).await;
    // Deleted while nobody counts its layers: past the admission policy, which goes by status.
    drop(controller);
    rig.connectors().delete("lab", &DeleteParams::default()).await.expect("admitted");
    rig.layer("late", json!({"suspend": true})).await;
    let _controller = rig.run().await;
    let name = format!("{}/late", rig.namespace);
    let held = until(&rig, "held", |c| has(c, C::Ready, "LayersExist")).await;
    assert!(told(&held, C::Ready).2.contains(&name), "{:?}", told(&held, C::Ready));
    rig.layers().delete("late", &DeleteParams::default()).await.expect("deleted");
    common::until(rig.connectors(), "lab", "gone", |c: Option<&Connector>| c.is_none()).await;
}

/// Somebody took our finalizer off: nothing of it is kept, and the next one of that name begins anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_goes_by_force_gives_its_session_back() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    ready(&rig).await;
    drop(controller);
    rig.connectors().delete("lab", &DeleteParams::default()).await.expect("admitted");
    rig.layer("stays", json!({"machine": {"powerOn": false}})).await;
    let _controller = rig.run().await;
    until(&rig, "held", |c| has(c, C::Ready, "LayersExist") && told(c, C::StorageReady).0 == "True").await;
    let logouts = || rig.calls("session.logout");
    let before = logouts();
    let force = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    rig.connectors().patch("lab", &PatchParams::default(), &force).await.expect("a patch");
    common::eventually("its session is given back", async || (logouts() > before).then_some(())).await;
    rig.until_reason("stays", "ConnectorNotFound").await;
    let before = logins(&rig.sim);
    rig.apply(&rig.connector()).await;
    rig.until_reason("stays", "StartMachine").await;
    assert_eq!(logins(&rig.sim), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_no_layer_is_told_and_left_alone() {
    let rig = Rig::alone().await;
    let _controller = rig.run().await;
    ready(&rig).await;
    let (lost, kept) = ("11111111-0000-0000-0000-000000000001", "11111111-0000-0000-0000-000000000002");
    let row = left_behind(&rig, lost, false).await;
    left_behind(&rig, kept, true).await;
    let found = until(&rig, "told", |c| {
        told(c, C::Unclaimed).0 == "True" && told(c, C::Unclaimed).2.contains("1 disk of a deleted")
    })
    .await;
    assert!(has(&found, C::Unclaimed, "UnclaimedObjects"));
    let message = told(&found, C::Unclaimed).2;
    assert!(message.contains(lost) && message.contains("3 GiB") && message.contains("first seen"), "{message}");
    assert!(!message.contains(kept), "{message}");
    assert_eq!(told(&found, C::Ready).0, "True");

    rig.sim.pool.db().delete("VDI", &row);
    let found = until(&rig, "gone", |c| told(c, C::Unclaimed).0.is_empty()).await;
    assert!(told(&found, C::Ready).2.contains("kept there by deletionPolicy Retain"));
    let destroyed = rig.sim.pool.log.counts().into_iter().any(|(method, _)| method.contains("destroy"));
    assert!(!destroyed, "nothing is deleted");
}

/// Who knows the layers of one namespace alone takes no other's disks for nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_controller_calls_nothing_unclaimed_and_says_so() {
    let rig = Rig::new().await;
    left_behind(&rig, "11111111-0000-0000-0000-000000000001", false).await;
    let _controller = rig.run().await;
    ready(&rig).await;
    // What is nobody's is told only after a while.
    rig.meanwhile().await;
    let found = ready(&rig).await;
    assert_eq!(told(&found, C::Unclaimed).0, "");
    assert!(told(&found, C::Ready).2.contains("--watch-namespace"), "{}", told(&found, C::Ready).2);
}

/// A frozen disk with keys of a layer that no longer exists.
async fn left_behind(rig: &Rig, uuid: &str, retained: bool) -> Ref {
    let cluster: k8s_openapi::api::core::v1::Namespace =
        Api::all(rig.client.clone()).get("kube-system").await.expect("kube-system");
    let cluster = cluster.uid().expect("a uid");
    let sr = named(&rig.sim, "SR", "Shared storage");
    let mut keys = json!({
        "lamina.dev/schema": "1", "lamina.dev/cluster": cluster, "lamina.dev/role": "frozen", "lamina.dev/op": "0123456789abcdef",
        "lamina.dev/self": uuid, "lamina.dev/layer": "a-layer-of-old", "lamina.dev/version": "1", "lamina.dev/base": "none",
    });
    if retained {
        keys["lamina.dev/retained"] = json!("true");
    }
    let fields = [
        ("uuid", json!(uuid)),
        ("name_label", json!("left behind")),
        ("SR", json!(sr)),
        ("managed", json!(true)),
        ("virtual_size", json!(3_i64 << 30)),
        ("other_config", keys),
    ];
    rig.sim.pool.db().create("VDI", fields)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_goes_ends_no_session_and_holds_a_removal_only_after_a_restart() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    for name in ["first", "second"] {
        rig.layer(name, json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
        rig.until_reason(name, "StartMachine").await;
    }
    secrets(&rig).delete("lab", &DeleteParams::default()).await.expect("deleted");
    rig.delete("first").await;
    rig.until_gone("first").await;
    assert_eq!(told(&ready(&rig).await, C::Authenticated).0, "True");

    drop(controller);
    rig.delete("second").await;
    let _controller = rig.run().await;
    let found = fails(&rig, C::Authenticated, "CredentialsGone", &["'lab'", "restore it", "Orphan"]).await;
    let (_, _, why) = told(&found, C::Reachable);
    assert!(why.contains("cannot be told without"), "{why}");
    let held =
        rig.until("second", "told why", |l| rig::ready(l).is_some_and(|(_, m)| m.contains("'lab' is gone"))).await;
    assert!(held.metadata.deletion_timestamp.is_some());
    rig.patch("second", json!({"deletionPolicy": "Orphan"})).await;
    rig.until_gone("second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_on_a_connector_is_an_event() {
    let rig = Rig::new().await;
    patch(&rig, json!({"tls": {"fingerprintsSHA256": null, "insecureSkipVerify": true}})).await;
    rig.sim.pool.accounts.put(Account {
        name: "root".into(),
        password: "secret".into(),
        role: Some("vm-power-admin".into()),
    });
    let _controller = rig.run().await;
    ready(&rig).await;
    let coordinator = named(&rig.sim, "host", "host1");
    set(&rig.sim, "host", &coordinator, "name_label", json!("host9"));
    until(&rig, "told", |c| told(c, C::Ready).2.contains("host9")).await;
    for word in ["Connected: ", "VerificationOff: ", "PoolOperatorMissing: ", "CoordinatorChanged: "] {
        common::eventually(word, async || rig.events("lab").await.into_iter().find(|e| e.starts_with(word))).await;
    }
    let changed = rig.events("lab").await.into_iter().find(|e| e.starts_with("CoordinatorChanged")).expect("an event");
    assert!(changed.contains("host1 (127.0.0.1)") && changed.contains("host9 (127.0.0.1)"), "{changed}");
}
