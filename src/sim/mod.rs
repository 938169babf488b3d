//! A simulated XenServer pool behind XAPI's own wire: an instrument for tests, demonstrations and any XAPI client.
//!
//! It imitates what `xapi.md` (the team's notes on XAPI) says of the real daemon, and every behaviour cites its line there. It knows
//! no client: neither their names nor their keys. What runs inside a guest is a script given from outside.
//!
//! The seam inside: [`serve`] reads the wire, `rpc` checks what every call must pass and hands a [`Call`] to [`dispatch`]; the rooms of the
//! world (`storage`, `vm`, `vbd`, …) answer the calls that are theirs and leave the rest to the generic accessors of `fields`.
//! A call changes the world in *stages*: between two of them it awaits `pool.clock.stage(name)`, so that a manual clock can stop there, and
//! never holds the database's lock across an await. A dropped future is a dead process: each stage must leave what a crash would.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::xapi::wire::{Failure, Ref};

mod allowed;
mod base64;
mod build;
mod cbt;
pub mod clock;
mod clone;
pub mod control;
mod daemon;
pub mod db;
pub mod disk;
pub mod domain;
mod events;
pub mod faults;
mod fields;
pub mod guest;
mod ha;
mod http;
mod metrics;
mod pause;
mod placement;
pub mod plan;
mod plugin;
pub mod power;
mod process;
mod query;
mod queue;
mod reflect;
pub mod restart;
mod row;
mod rpc;
pub mod schema;
pub mod script;
pub mod serve;
pub mod session;
mod settings;
mod snapshot;
mod sr;
mod storage;
mod stream;
pub mod task;
mod vbd;
mod vdi;
mod vm;
pub mod world;
mod xmlrpc;

use db::Db;
use schema::Record;

/// What a call comes to.
pub type Answer = Result<Value, Failure>;

/// One simulated pool, shared by its hosts' listeners and by everything under way.
pub struct Pool {
    db: Mutex<Db>,
    /// Time and stages: `pool.clock.stage("VDI.clone: row").await`, `pool.clock.sleep(duration).await`.
    pub clock: clock::Clock,
    /// What the world holds beside the database: bytes of disks, trees, guests.
    pub world: world::World,
    pub faults: faults::Faults,
    pub log: faults::Log,
    pub accounts: session::Accounts,
    jobs: task::Jobs,
    process: process::Process,
    subscriptions: events::Subscriptions,
    /// PEM by host address.
    certificates: HashMap<String, String>,
}

impl Pool {
    /// The database. Never keep the guard across an await.
    pub fn db(&self) -> MutexGuard<'_, Db> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that may be carried out: session, role, number and types of its parameters are checked.
#[derive(Clone, Debug)]
pub struct Call {
    pub class: &'static str,
    pub message: &'static str,
    /// In the schema's order and types, left-out ones filled in, without the session.
    pub args: Vec<Value>,
    pub session: Ref,
    /// The call's task; null for accessors, which have none.
    pub task: Ref,
    /// The host that was asked.
    pub host: Ref,
}

impl Call {
    pub fn value(&self, i: usize) -> &Value {
        static NULL: Value = Value::Null;
        self.args.get(i).unwrap_or(&NULL)
    }

    pub fn text(&self, i: usize) -> &str {
        self.value(i).as_str().unwrap_or_default()
    }

    pub fn reference(&self, i: usize) -> Ref {
        Ref(self.value(i).as_str().unwrap_or(Ref::NULL).to_owned())
    }

    pub fn int(&self, i: usize) -> i64 {
        self.value(i).as_i64().unwrap_or_default()
    }

    pub fn flag(&self, i: usize) -> bool {
        self.value(i).as_bool().unwrap_or_default()
    }

    /// A constructor's struct, with defaults filled in.
    ///
    /// # Errors
    /// As [`schema::Class::construct`].
    pub fn record(&self, i: usize) -> Result<Record, Failure> {
        match schema::schema().class(self.class) {
            Some(class) => class.construct(self.value(i)),
            None => Ok(Record::new()),
        }
    }
}

/// Carries a call out. The rooms of the world come first, so that a field with a meaning of its own (`VM.set_is_a_template`)
/// never reaches the generic setter.
pub async fn dispatch(pool: &Arc<Pool>, call: &Call) -> Answer {
    if let Some(answer) = storage::call(pool, call).await {
        return answer;
    }
    if let Some(answer) = vm::call(pool, call).await {
        return answer;
    }
    if let Some(answer) = vbd::call(pool, call).await {
        return answer;
    }
    if let Some(answer) = daemon::call(pool, call) {
        return answer;
    }
    if let Some(answer) = task::call(pool, call) {
        return answer;
    }
    if let Some(answer) = session::call(pool, call) {
        return answer;
    }
    if let Some(answer) = events::call(pool, call).await {
        return answer;
    }
    fields::call(pool, call)
}
