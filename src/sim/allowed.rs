//! `allowed_operations`: a cached hint that lags behind (xapi.md 9.2). Never asked by the simulator itself.
//!
//! Called after each operation by whoever did it; the row is put right a moment later.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Pool, db::Db, schema::schema, storage, vbd, vm};
use crate::xapi::wire::Ref;

/// How far the hint lags.
const LAG: Duration = Duration::from_millis(50);

/// Puts the hint of an object right after the lag; an object that is gone by then has none.
pub fn refresh(pool: &Arc<Pool>, class: &'static str, object: &Ref) {
    let (inner, object) = (Arc::clone(pool), object.clone());
    pool.spawn(async move {
        inner.clock.sleep(LAG).await;
        let mut db = inner.db();
        let ops = json!(operations(&db, class, &object));
        db.set(class, &object, "allowed_operations", ops).unwrap_or_default();
    });
}

fn operations(db: &Db, class: &str, object: &Ref) -> Vec<String> {
    let may = |op: &str| match class {
        "VDI" => storage::check_vdi(db, object, op).is_ok(),
        "VM" => vm::check(db, object, op).is_ok(),
        _ => vbd::check(db, object, op).is_ok(),
    };
    let known = schema().enums.get(&format!("{}_operations", class.to_lowercase()));
    known.into_iter().flatten().filter(|op| may(op)).cloned().collect()
}

/// At once, for a world that is being made.
pub fn settle(db: &mut Db, class: &str) {
    let all: Vec<Ref> = db.all(class).map(|(r, _)| r.clone()).collect();
    for object in all {
        let ops: Value = json!(operations(db, class, &object));
        db.set(class, &object, "allowed_operations", ops).unwrap_or_default();
    }
}
