//! World files: what they add, what they have in the default world's place, and their mistakes.

use lamina::sim::{
    plan::{Mistake, WorldFile},
    serve::{Error, Options, Sim},
};
use serde_json::json;

use crate::common::hands::http;
use crate::wire::Raw;

fn file(text: &str) -> WorldFile {
    serde_saphyr::from_str(text).unwrap()
}

pub async fn of(text: &str) -> Raw {
    let sim = Sim::start(Options { world: file(text), ..Options::default() }).await.unwrap();
    let http = http(&sim);
    let mut raw = Raw { sim, http, session: String::new() };
    raw.session = raw.login("root", "secret").await.unwrap();
    raw
}

async fn names(raw: &Raw, class: &str) -> Vec<String> {
    let all = raw.call(&format!("{class}.get_all_records"), json!([])).await.unwrap();
    let mut names: Vec<_> =
        all.as_object().unwrap().values().map(|row| row["name_label"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// xapi.md 3 (PBD), 4.5 and 10: hosts, storage, networks, templates and the OS disk of a pool that nobody described.
#[tokio::test]
async fn the_default_world_is_what_is_promised() {
    let raw = of("").await;
    assert_eq!(names(&raw, "host").await, ["host1", "host2", "host3"]);
    assert_eq!(raw.sim.urls().len(), 3, "each listens");
    let networks = ["Internal", "Packaging", "Pool-wide network associated with eth0"];
    assert_eq!(names(&raw, "network").await, networks);
    let hosts = raw.call("host.get_all", json!([])).await.unwrap();
    for network in networks {
        let pifs = raw.get("network", &raw.named("network", network).await, "PIFs").await;
        let expected = if network == "Internal" { 0 } else { 3 };
        assert_eq!(pifs.as_array().unwrap().len(), expected, "{network}: a card of each host, or none");
    }
    for (name, kind, shared, files) in [
        ("Shared storage", "nfs", true, vec!["win11-24h2", "with-disk 0"]),
        ("Local storage on host1", "ext", false, vec![]),
        ("Local storage on host2", "ext", false, vec![]),
        ("Local storage on host3", "ext", false, vec![]),
        ("ISO library", "iso", true, vec!["guest-tools.iso"]),
        ("XenServer Tools", "iso", true, vec![]),
    ] {
        let sr = raw.named("SR", name).await;
        let row = raw.call("SR.get_record", json!([sr])).await.unwrap();
        let content = if kind == "iso" { "iso" } else { "user" };
        assert_eq!(
            (&row["type"], &row["content_type"], &row["shared"]),
            (&json!(kind), &json!(content), &json!(shared))
        );
        let mut seen_by = Vec::new();
        for pbd in row["PBDs"].as_array().unwrap() {
            let pbd = raw.call("PBD.get_record", json!([pbd])).await.unwrap();
            assert_eq!(pbd["currently_attached"], json!(true), "{name}");
            seen_by.push(pbd["host"].clone());
        }
        let owner = name.strip_prefix("Local storage on ");
        let expected = match owner {
            Some(host) => vec![json!(raw.named("host", host).await)],
            None => hosts.as_array().unwrap().clone(),
        };
        seen_by.sort_by_key(ToString::to_string);
        let mut expected = expected;
        expected.sort_by_key(ToString::to_string);
        assert_eq!(seen_by, expected, "{name}: one PBD for each host that sees it");
        let mut inside = Vec::new();
        for vdi in row["VDIs"].as_array().unwrap() {
            inside.push(raw.get("VDI", vdi.as_str().unwrap(), "name_label").await);
        }
        inside.sort_by_key(ToString::to_string);
        assert_eq!(inside, files, "{name}");
    }
    assert_eq!(names(&raw, "SR").await.len(), 6);
    let tools = raw.call("SR.get_record", json!([raw.named("SR", "XenServer Tools").await])).await.unwrap();
    assert_eq!(tools["is_tools_sr"], json!(true));
    assert_eq!(tools["other_config"], json!({"xenserver_tools_sr": "true", "xensource_internal": "true"}));
    let shared = raw.named("SR", "Shared storage").await;
    assert_eq!(raw.get("pool", &raw.first("pool").await, "default_SR").await, json!(shared));

    let templates = raw.call("VM.get_all_records_where", json!(["field \"is_a_template\" = \"true\""])).await.unwrap();
    let built_in = |row: &&serde_json::Value| row["is_default_template"] == json!(true);
    let built: Vec<_> = templates.as_object().unwrap().values().filter(built_in).collect();
    assert!(built.len() >= 4 && built.iter().any(|row| row["name_label"] == "Windows 11"), "{}", built.len());
    for row in built {
        let keys = &row["other_config"];
        assert!(keys["disks"].as_str().unwrap().contains("<provision>") && keys["default_template"] == "true");
    }
    for (name, disks, cards) in [("packaging", 0, 1), ("with-disk", 1, 1), ("no-network", 0, 0)] {
        let row = raw.call("VM.get_record", json!([raw.named("VM", name).await])).await.unwrap();
        let count = |field: &str| row[field].as_array().unwrap().len();
        assert_eq!((count("VBDs"), count("VIFs")), (disks, cards), "{name}");
        assert_eq!((&row["is_a_template"], &row["is_default_template"]), (&json!(true), &json!(false)), "{name}");
        assert_eq!((&row["HVM_boot_policy"], &row["other_config"]), (&json!("BIOS order"), &json!({})), "{name}");
    }
    let os = raw.named("VDI", "win11-24h2").await;
    let row = raw.call("VDI.get_record", json!([os])).await.unwrap();
    assert_eq!((&row["virtual_size"], &row["VBDs"]), (&json!(32_u64 << 30), &json!([])));
    assert_eq!((&row["sm_config"]["vdi_type"], &row["managed"]), (&json!("vhd"), &json!(true)));
    let (digest, empty) = (raw.sim.pool.digest(row["uuid"].as_str().unwrap()), raw.named("VDI", "with-disk 0").await);
    assert_ne!(digest, raw.sim.pool.digest(raw.get("VDI", &empty, "uuid").await.as_str().unwrap()), "it has content");
}

/// The instrument itself: what a file names is there beside the default world.
#[tokio::test]
async fn a_world_file_adds_to_the_default_world() {
    let raw = of(
        "repositories: [{name: Extra, type: lvm, size_gib: 10}]\ndisks: [{name: d, repository: Extra, size_gib: 1}]\n\
        networks: [Lab]\ndefault_repository: Extra\n",
    )
    .await;
    let disk = raw.named("VDI", "d").await;
    let extra = raw.named("SR", "Extra").await;
    assert_eq!(raw.get("VDI", &disk, "SR").await, json!(extra));
    assert_eq!(raw.get("pool", &raw.first("pool").await, "default_SR").await, json!(extra));
    raw.named("VDI", "win11-24h2").await;
    raw.named("network", "Lab").await;
    assert_eq!(names(&raw, "host").await.len(), 3);
}

/// The instrument itself: nothing but what the file names, and the storage drivers of xapi.md 2.4.
#[tokio::test]
async fn a_world_file_can_be_the_whole_world() {
    let raw = of(
        "replace: true\nhosts: 1\nnetworks: [Lab]\nrepositories:\n- {name: Discs, type: iso, size_gib: 10, files: [guest-tools.iso]}\n\
        - {name: SAN, type: lvmoiscsi, size_gib: 500}\ndisks: [{name: os, size_gib: 32, blocks: [0, 1]}]\ntemplates: [{name: lab}]\n",
    )
    .await;
    assert_eq!(names(&raw, "host").await, ["host1"]);
    assert_eq!(names(&raw, "network").await, ["Internal", "Lab"]);
    assert_eq!(names(&raw, "SR").await, ["Discs", "SAN"]);
    assert_eq!(names(&raw, "VDI").await, ["guest-tools.iso", "os"]);
    assert_eq!(names(&raw, "VM").await, ["Control domain on host: host1", "lab"]);
    let san = raw.named("SR", "SAN").await;
    assert_eq!(raw.get("pool", &raw.first("pool").await, "default_SR").await, json!(san));
    // A machine can live there.
    let vm = raw.make("VM.clone", json!([raw.named("VM", "lab").await, "m"])).await;
    raw.call("VM.set_is_a_template", json!([vm, false])).await.unwrap();
    raw.vbd(&vm, Some(&raw.named("VDI", "os").await), "0").await.unwrap();
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
}

/// The instrument itself: a file that makes no world is refused before anybody listens.
#[tokio::test]
async fn names_that_nothing_bears_are_mistakes() {
    for (text, mistake) in [
        ("disks: [{name: d, repository: Nowhere, size_gib: 1}]", Mistake::Repository("Nowhere".into())),
        ("default_repository: Nowhere", Mistake::Repository("Nowhere".into())),
        ("replace: true\ndisks: [{name: d, size_gib: 1}]", Mistake::Homeless("d".into())),
        ("replace: true\ntemplates: [{name: t}]", Mistake::Network("t".into())),
        ("hosts: 0", Mistake::Hosts(0)),
    ] {
        let refused = Sim::start(Options { world: file(text), ..Options::default() }).await.err();
        assert!(matches!(refused, Some(Error::World(ref m)) if *m == mistake), "{text}: {refused:?}");
    }
    assert!(serde_saphyr::from_str::<WorldFile>("templats: []").is_err());
}
