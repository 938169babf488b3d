//! Calls that concern the daemon itself: its database (xapi.md 14, Durability), its clock (9.2), its certificate (1.5), its messages (3),
//! roles (2.3), the coordinator's place (9.2) and what high availability looks at (9.2).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::schema::Record;
use super::{Answer, Call, Pool, ha, restart};
use crate::xapi::wire::{Failure, Ref, parse_time};

/// Answers the calls of this room; `None`: not mine.
pub fn call(pool: &Arc<Pool>, call: &Call) -> Option<Answer> {
    Some(match (call.class, call.message) {
        ("pool", "sync_database") => {
            pool.db().flush();
            Ok(json!(""))
        }
        ("host", "get_servertime") => pool.db().get("host", &call.reference(0)).map(|_| json!(pool.clock.stamp())),
        ("host", "get_server_certificate") => certificate(pool, &call.reference(0)),
        ("host", "disable" | "enable") => {
            let on = json!(call.message == "enable");
            pool.db().set("host", &call.reference(0), "enabled", on).map(|()| json!(""))
        }
        ("pool", "enable_ha" | "disable_ha") => Ok(set_ha(pool, call.message == "enable_ha")),
        ("pool", "designate_new_master") => designate(pool, &call.reference(0)),
        ("host", "list_methods") => Ok(super::rpc::methods()),
        ("message", "create") => Ok(message(pool, call)),
        ("message", "get") => {
            let since = parse_time(call.text(2));
            Ok(messages(pool, |row| {
                text(row, "cls") == call.text(0) && text(row, "obj_uuid") == call.text(1) && after(row, since)
            }))
        }
        ("message", "get_since") => {
            let since = parse_time(call.text(0));
            Ok(messages(pool, |row| after(row, since)))
        }
        ("message", "destroy") => {
            let mut db = pool.db();
            let message = call.reference(0);
            db.get("message", &message).map(|_| ()).map(|()| {
                db.delete("message", &message);
                json!("")
            })
        }
        ("role", "get_permissions_name_label") => pool
            .db()
            .text("role", &call.reference(0), "name_label")
            .map(|role| json!(super::session::permissions(role))),
        _ => return None,
    })
}

/// High availability on or off (xapi.md 3, `ha_enabled`); the statefile on the heartbeat's repository is not simulated.
fn set_ha(pool: &Arc<Pool>, on: bool) -> Value {
    {
        let mut db = pool.db();
        let all: Vec<Ref> = db.all("pool").map(|(r, _)| r.clone()).collect();
        all.iter().for_each(|row| db.set("pool", row, "ha_enabled", json!(on)).unwrap_or_default());
    }
    ha::look(pool);
    json!("")
}

/// The answer goes out, then the daemons change their roles: sessions and tasks are gone with that (xapi.md 2.2, 9.2).
fn designate(pool: &Arc<Pool>, host: &Ref) -> Answer {
    let uuid = pool.db().text("host", host, "uuid")?.to_owned();
    let inner = Arc::clone(pool);
    pool.world.spawn(async move {
        inner.clock.stage("daemon/designate", Duration::from_secs(1)).await;
        // The host was there a moment ago.
        restart::change_coordinator(&inner, &uuid).await.unwrap_or_default();
    });
    Ok(json!(""))
}

fn text<'a>(row: &'a Record, field: &str) -> &'a str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn after(row: &Record, since: Option<jiff::Timestamp>) -> bool {
    parse_time(text(row, "timestamp")) >= since
}

/// Files on the coordinator's disk that nobody prunes here (xapi.md 3, message).
fn messages(pool: &Pool, wanted: impl Fn(&Record) -> bool) -> Value {
    let db = pool.db();
    let rows = db.all("message").filter(|(_, row)| wanted(row));
    Value::Object(rows.map(|(r, row)| (r.to_string(), Value::Object(row.clone()))).collect::<Map<_, _>>())
}

fn message(pool: &Pool, call: &Call) -> Value {
    let row = [
        ("name", call.value(0).clone()),
        ("priority", call.value(1).clone()),
        ("cls", call.value(2).clone()),
        ("obj_uuid", call.value(3).clone()),
        ("body", call.value(4).clone()),
        ("timestamp", json!(pool.clock.stamp())),
    ];
    json!(pool.db().create("message", row))
}

/// The host's own certificate as PEM (xapi.md 1.5); a host that has no listener is off line.
fn certificate(pool: &Pool, host: &Ref) -> Answer {
    let address = pool.db().text("host", host, "address")?.to_owned();
    pool.certificates.get(&address).map(|pem| json!(pem)).ok_or_else(|| Failure::new("HOST_OFFLINE", [host.as_str()]))
}
