//! What was to be seen on the pool, change by change: the rows of disks, machines and attachments, each with the number of the last
//! changing call. Read as any client could read them; nothing of the simulator's inside.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use lamina::sim::Pool;
use serde_json::{Map, Value};

pub type Row = Map<String, Value>;

/// The classes that invariants speak of.
const CLASSES: [&str; 3] = ["VDI", "VM", "VBD"];

#[derive(Clone)]
pub struct Sight {
    pub at: u64,
    /// `None`: gone.
    pub row: Option<Arc<Row>>,
}

#[derive(Default)]
struct State {
    objects: HashMap<String, (&'static str, Vec<Sight>)>,
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
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { objects, doubles } = &mut *state;
        let mut there = HashSet::new();
        {
            let db = pool.db();
            for row in db.changes_since(0).filter(|row| CLASSES.contains(&row.class)) {
                there.insert(row.reference.to_string());
                let (_, sights) = objects.entry(row.reference.to_string()).or_insert((row.class, Vec::new()));
                // A changed row is another one in memory.
                if !sights.last().and_then(|s| s.row.as_ref()).is_some_and(|last| Arc::ptr_eq(last, row.record)) {
                    sights.push(Sight { at, row: Some(Arc::clone(row.record)) });
                }
            }
        }
        let mut lineages: HashMap<&str, &str> = HashMap::new();
        for (reference, (_, sights)) in objects.iter_mut() {
            if !there.contains(reference) && sights.last().is_some_and(|s| s.row.is_some()) {
                sights.push(Sight { at, row: None });
            }
            let Some(row) = sights.last().and_then(|s| s.row.as_deref()) else { continue };
            let (Some(op), true) = (key(row, "op"), claimed(row)) else { continue };
            if let Some(other) = lineages.insert(op, reference) {
                doubles.push(format!("{other} and {reference} are both claimed as {op} at call {at}"));
            }
        }
    }

    /// All that was ever seen of an object, oldest first.
    pub fn of(&self, reference: &str) -> Vec<Row> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.objects.get(reference);
        found.into_iter().flat_map(|(_, sights)| sights).filter_map(|s| s.row.as_deref().cloned()).collect()
    }

    /// The same by uuid.
    pub fn of_uuid(&self, uuid: &str) -> Vec<Row> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = state.objects.values().flat_map(|(_, sights)| sights).filter_map(|s| s.row.as_deref());
        all.filter(|row| text(row, "uuid") == uuid).cloned().collect()
    }

    /// The rows of a class as they were when this call arrived.
    pub fn at(&self, class: &str, number: u64) -> Vec<(String, Row)> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_class = state.objects.iter().filter(|(_, (c, _))| *c == class);
        let then = of_class.filter_map(|(r, (_, sights))| {
            let last = sights.iter().rev().find(|s| s.at < number).or(sights.first())?;
            Some((r.clone(), last.row.as_deref()?.clone()))
        });
        then.collect()
    }

    pub fn doubles(&self) -> Vec<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).doubles.clone();
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
