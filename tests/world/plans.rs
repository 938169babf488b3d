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
