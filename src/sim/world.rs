//! (the world's: being built)
use serde_json::json;

use super::db::Db;

#[derive(Default)]
pub struct World {}

/// Fills an empty database with the default world. Hosts take the addresses 127.0.0.1, 127.0.0.2, …: the listeners follow `host.address`.
pub fn populate(db: &mut Db) {
    let mut master = None;
    for i in 1..=3 {
        let host = db.create(
            "host",
            [
                ("name_label", json!(format!("host{i}"))),
                ("address", json!(format!("127.0.0.{i}"))),
                ("hostname", json!(format!("host{i}"))),
                ("enabled", json!(true)),
                ("API_version_major", json!(2)),
                ("API_version_minor", json!(23)),
                ("other_config", json!({"agent_start_time": "0."})),
            ],
        );
        master.get_or_insert(host);
    }
    db.create("pool", [("name_label", json!("pool")), ("master", json!(master))]);
}
