//! What was to be seen on the pool, change by change: the rows of disks, machines and attachments, each with the number of the last
//! changing call. Read in process, as events run together what follows quickly; these are the rows that any client gets, and nothing of the
//! simulator's inside. What there is at a life's end is asked over the wire (`stage`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lamina::sim::Pool;
use lamina::xapi::wire::Ref;
use serde_json::{Map, Value};

pub type Row = Map<String, Value>;

/// The classes that invariants speak of.
const CLASSES: [&str; 3] = ["VDI", "VM", "VBD"];

struct Sight {
    at: u64,
    /// `None`: gone.
    row: Option<Arc<Row>>,
}

struct Object {
    class: &'static str,
    sights: Vec<Sight>,
    /// What it is claimed as now.
    lineage: Option<String>,
    /// The last look that saw it.
    seen: u64,
}

impl Object {
    fn now(&self) -> Option<&Arc<Row>> {
        self.sights.last()?.row.as_ref()
    }
}

#[derive(Default)]
struct State {
    objects: HashMap<Ref, Object>,
    looks: u64,
    /// Two claimed objects of one lineage at one time.
    doubles: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Sights(Arc<Mutex<State>>);

/// Watches until dropped.
pub struct Watching(tokio::task::JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sights {
    /// Looks at every change from now on. Changes that come together are seen together.
    pub fn watch(&self, pool: &Arc<Pool>) -> Watching {
        let (sights, pool) = (self.clone(), Arc::clone(pool));
        let mut generation = pool.db().watch();
        Watching(tokio::spawn(async move {
            loop {
                sights.look(&pool);
                if generation.changed().await.is_err() {
                    return;
                }
            }
        }))
    }

    pub fn look(&self, pool: &Pool) {
        let at = pool.log.number();
        let mut state = self.state();
        let State { objects, looks, doubles } = &mut *state;
        *looks += 1;
        let db = pool.db();
        for change in db.changes_since(0).filter(|row| CLASSES.contains(&row.class)) {
            let fresh = || Object { class: change.class, sights: Vec::new(), lineage: None, seen: 0 };
            if !objects.contains_key(change.reference) {
                objects.insert(change.reference.clone(), fresh());
            }
            let Some(object) = objects.get_mut(change.reference) else { continue };
            object.seen = *looks;
            // A changed row is another one in memory.
            if !object.now().is_some_and(|last| Arc::ptr_eq(last, change.record)) {
                object.lineage = key(change.record, "op").filter(|_| claimed(change.record)).map(str::to_owned);
                object.sights.push(Sight { at, row: Some(Arc::clone(change.record)) });
            }
        }
        drop(db);
        let mut lineages: HashMap<&str, &Ref> = HashMap::new();
        for (reference, object) in objects.iter_mut() {
            if object.seen != *looks {
                if object.now().is_some() {
                    object.sights.push(Sight { at, row: None });
                }
                continue;
            }
            let Some(op) = &object.lineage else { continue };
            if let Some(other) = lineages.insert(op, reference) {
                doubles.push(format!("{other} and {reference} are both claimed as {op} at call {at}"));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was ever seen of an object, oldest first.
    pub fn of(&self, reference: &str) -> Vec<Arc<Row>> {
        let state = self.state();
        let found = state.objects.get(&Ref(reference.to_owned()));
        found.into_iter().flat_map(|o| &o.sights).filter_map(|s| s.row.clone()).collect()
    }

    /// The same by uuid.
    pub fn of_uuid(&self, uuid: &str) -> Vec<Arc<Row>> {
        let state = self.state();
        let all = state.objects.values().flat_map(|o| &o.sights).filter_map(|s| s.row.as_ref());
        all.filter(|row| text(row, "uuid") == uuid).cloned().collect()
    }

    /// The rows of a class as they were when this call arrived.
    pub fn at(&self, class: &str, number: u64) -> Vec<(String, Arc<Row>)> {
        let state = self.state();
        let then = state.objects.iter().filter(|(_, o)| o.class == class).filter_map(|(r, o)| {
            let last = o.sights.iter().rev().find(|s| s.at < number).or(o.sights.first())?;
            Some((r.to_string(), last.row.clone()?))
        });
        then.collect()
    }

    pub fn doubles(&self) -> Vec<String> {
        let mut all = self.state().doubles.clone();
        all.dedup();
        all
    }
}

/// One of our keys.
pub fn key<'a>(row: &'a Row, name: &str) -> Option<&'a str> {
    row.get("other_config")?.get(format!("lamina.dev/{name}"))?.as_str()
}

pub fn text<'a>(row: &'a Row, field: &str) -> &'a str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Bears keys that are its own and not those of what it was made from.
pub fn claimed(row: &Row) -> bool {
    key(row, "self").is_some_and(|own| own == text(row, "uuid"))
}
