//! A user of the pool beside the controller: reads and changes it over the wire, as `xe` would, with a session of its own.

use std::sync::Mutex;
use std::time::Duration;

use lamina::sim::serve::Sim;
use serde_json::{Map, Value, json};

/// One object of the pool.
#[derive(Clone, Debug)]
pub struct Thing {
    pub r: String,
    pub row: Value,
}

impl Thing {
    pub fn text(&self, field: &str) -> &str {
        self.row[field].as_str().unwrap_or_default()
    }

    pub fn uuid(&self) -> &str {
        self.text("uuid")
    }

    /// One of our keys, without its prefix.
    pub fn key(&self, key: &str) -> Option<&str> {
        self.row["other_config"][format!("lamina.dev/{key}")].as_str()
    }

    pub fn role(&self) -> &str {
        self.key("role").unwrap_or_default()
    }

    /// `self` is its own uuid: somebody claimed it, and it is no copy.
    pub fn claimed(&self) -> bool {
        self.key("self") == Some(self.uuid())
    }
}

/// A client that trusts this pool's hosts.
pub fn http(sim: &Sim) -> reqwest::Client {
    super::tls();
    let roots = reqwest::Certificate::from_pem_bundle(sim.ca_pem().as_bytes()).unwrap();
    // None is kept: the next call may come just as the daemon's death cuts it.
    let builder =
        reqwest::Client::builder().tls_certs_only(roots).timeout(Duration::from_secs(20)).pool_max_idle_per_host(0);
    builder.build().unwrap()
}

pub struct Hands {
    http: reqwest::Client,
    url: String,
    /// Ends with each death of the daemon.
    session: Mutex<String>,
}

impl Hands {
    pub async fn of(sim: &Sim) -> Self {
        let hands = Self { http: http(sim), url: sim.urls().remove(0), session: Mutex::default() };
        hands.log_in().await;
        hands
    }

    async fn log_in(&self) {
        let login = self.bare("session.login_with_password", json!(["root", "secret", "1.0", "a person"])).await;
        *self.session.lock().expect("no panic before") =
            login.expect("a session").as_str().unwrap_or_default().to_owned();
    }

    async fn bare(&self, method: &str, params: Value) -> Result<Value, String> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let sent = self.http.post(format!("{}/jsonrpc", self.url)).json(&request).send().await;
        let reply: Value = sent.expect("a reply").json().await.expect("JSON");
        match reply.get("error") {
            None => Ok(reply["result"].clone()),
            Some(error) => Err(format!("{} {}", error["message"], error["data"])),
        }
    }

    pub async fn call(&self, method: &str, params: Value) -> Value {
        let params = params.as_array().expect("a list");
        let attempt = || {
            let session = json!(*self.session.lock().expect("no panic before"));
            self.bare(method, std::iter::once(session).chain(params.clone()).collect())
        };
        let mut reply = attempt().await;
        if reply.as_ref().is_err_and(|e| e.contains("SESSION_INVALID")) {
            self.log_in().await;
            reply = attempt().await;
        }
        reply.unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    pub async fn all(&self, class: &'static str) -> Vec<Thing> {
        let rows: Map<String, Value> =
            serde_json::from_value(self.call(&format!("{class}.get_all_records"), json!([])).await).expect("records");
        rows.into_iter().map(|(r, row)| Thing { r, row }).collect()
    }

    pub async fn disk(&self, uuid: &str) -> Option<Thing> {
        self.all("VDI").await.into_iter().find(|d| d.uuid() == uuid)
    }

    pub async fn machine(&self, uuid: &str) -> Option<Thing> {
        self.all("VM").await.into_iter().find(|m| m.uuid() == uuid)
    }

    pub async fn named(&self, class: &'static str, name: &str) -> Thing {
        let found = self.all(class).await.into_iter().find(|t| t.text("name_label") == name);
        found.unwrap_or_else(|| panic!("no {class} '{name}'"))
    }

    /// Disks and machines that bear keys of this layer.
    pub async fn of_layer(&self, uid: &str) -> Vec<Thing> {
        let mut all = self.all("VDI").await;
        all.extend(self.all("VM").await);
        all.retain(|t| t.key("layer") == Some(uid));
        all
    }

    /// Shared bases.
    pub async fn bases(&self) -> Vec<Thing> {
        let all = self.all("VDI").await;
        all.into_iter().filter(|d| d.role() == "base" && d.claimed()).collect()
    }

    /// Unblocks and destroys a machine that is not ours to destroy.
    pub async fn destroy_machine(&self, uuid: &str) {
        let vm = self.machine(uuid).await.expect("the machine").r;
        self.call("VM.set_blocked_operations", json!([vm, {}])).await;
        self.call("VM.destroy", json!([vm])).await;
    }

    pub async fn destroy_disk(&self, uuid: &str) {
        let vdi = self.disk(uuid).await.expect("the disk").r;
        self.call("VDI.destroy", json!([vdi])).await;
    }

    /// A machine of somebody else's with a writable VBD on a disk. Returns machine and VBD.
    pub async fn stranger(&self, name: &str, vdi: &str) -> (String, String) {
        let template = self.named("VM", "packaging").await.r;
        let vm = self.call("VM.clone", json!([template, name])).await;
        self.call("VM.set_is_a_template", json!([vm, false])).await;
        let row = json!({
            "VM": vm, "VDI": vdi, "userdevice": "0", "bootable": true, "mode": "RW", "type": "Disk", "empty": false,
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        });
        let vbd = self.call("VBD.create", json!([row])).await;
        let text = |v: Value| v.as_str().unwrap_or_default().to_owned();
        (text(vm), text(vbd))
    }

    /// I1, and what I2 says of everything that is left: no double, nothing unclaimed, no mark, no task under way, no idle base.
    pub async fn assert_tidy(&self) {
        let disks = self.all("VDI").await;
        let machines = self.all("VM").await;
        let mut seen = std::collections::BTreeSet::new();
        for t in disks.iter().chain(&machines) {
            assert_eq!(t.key("making"), None, "a mark is left on {}", t.uuid());
            if let Some(op) = t.key("op") {
                assert!(t.claimed(), "unclaimed: {t:?}");
                assert!(seen.insert(op.to_owned()), "a double: {t:?}");
            }
        }
        for base in disks.iter().filter(|d| d.role() == "base") {
            let used = disks.iter().any(|d| d.key("base") == Some(base.uuid()));
            assert!(used, "nobody stands on base {}", base.uuid());
        }
        for task in self.all("task").await {
            let ours = task.row["other_config"]["http:lamina-op"].is_string();
            assert!(!ours || task.text("status") != "pending", "{task:?}");
        }
    }

    /// I2: nothing of a layer is on the pool.
    pub async fn assert_nothing_of(&self, uid: &str) {
        assert_eq!(self.of_layer(uid).await.len(), 0, "{:#?}", self.of_layer(uid).await);
        let marked = |t: &Thing| t.key("making").is_some_and(|m| m.contains(uid));
        assert!(!self.all("VDI").await.iter().any(marked), "a mark of a layer that is gone");
    }
}
