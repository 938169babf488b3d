//! The pool's database: tables of rows with every field of the schema, as XAPI's own database is built.
//!
//! Every change takes the next generation number: `event.from` asks for what changed after a generation (xapi.md 5). Deletions are
//! remembered for a while only, per table. What was last written out is kept beside, for that is what an unclean death goes back to
//! (xapi.md 14, Durability). Used under one mutex by every call; never waits, never looks at the wire.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::schema::{Record, schema};
use crate::xapi::wire::{Failure, Ref};

/// A table forgets deletions beyond the first number, down to the second (xapi.md 5, "Lost deletions").
const DELETIONS: (usize, usize) = (512, 256);

/// Kept in memory only: gone with the process (xapi.md 2.2).
const VOLATILE: [&str; 2] = ["session", "task"];

#[derive(Clone)]
struct Row {
    record: Arc<Record>,
    created: u64,
    modified: u64,
}

/// A row that is gone; generations of its birth and end.
#[derive(Clone)]
pub struct Deletion {
    pub reference: Ref,
    pub created: u64,
    pub deleted: u64,
}

#[derive(Clone, Default)]
struct Table {
    rows: BTreeMap<Ref, Row>,
    deletions: VecDeque<Deletion>,
}

type Tables = BTreeMap<&'static str, Table>;

/// A changed row, as [`Db::changes_since`] finds it.
pub struct Change<'a> {
    pub class: &'static str,
    pub reference: &'a Ref,
    pub record: &'a Arc<Record>,
    pub created: u64,
    pub modified: u64,
}

pub struct Db {
    tables: Tables,
    /// Which row changed last in which generation: one entry a row.
    journal: BTreeMap<u64, (&'static str, Ref)>,
    generation: u64,
    written: (Tables, u64),
    changed: watch::Sender<u64>,
}

impl Default for Db {
    fn default() -> Self {
        let tables: Tables = schema().classes.keys().map(|name| (name.as_str(), Table::default())).collect();
        let written = (tables.clone(), 0);
        Self { tables, journal: BTreeMap::new(), generation: 0, written, changed: watch::channel(0).0 }
    }
}

impl Db {
    /// The generation of the last change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Wakes whoever waits for a change: the value is the generation.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Makes a row with every field of its class, `fields` over the defaults, and a fresh reference and uuid
    /// (unless `fields` brings a uuid). The null reference for a class that does not exist.
    pub fn create<'a>(&mut self, class: &str, fields: impl IntoIterator<Item = (&'a str, Value)>) -> Ref {
        let Some(known) = schema().class(class) else { return Ref::null() };
        let reference = Ref(format!("OpaqueRef:{}", Uuid::new_v4()));
        let mut record = known.blank();
        if record.contains_key("uuid") {
            record.insert("uuid".to_owned(), json!(Uuid::new_v4().to_string()));
        }
        record.extend(fields.into_iter().filter(|(k, _)| known.field(k).is_some()).map(|(k, v)| (k.to_owned(), v)));
        self.insert(&known.name, reference.clone(), record);
        reference
    }

    /// Puts a whole row under a reference of the caller's choice: a row that comes back, or a world file's.
    pub fn insert(&mut self, class: &str, reference: Ref, record: Record) {
        let Some(known) = schema().class(class) else { return };
        let name = known.name.as_str();
        let links: Vec<(&str, Ref)> =
            links_of(name).filter_map(|r| Some((r.field.as_str(), as_ref(record.get(&r.field)?)))).collect();
        let generation = self.next();
        let row = Row { record: Arc::new(record), created: generation, modified: generation };
        self.tables.entry(name).or_default().rows.insert(reference.clone(), row);
        self.journal.insert(generation, (name, reference.clone()));
        for (field, target) in links {
            self.link(name, field, &target, &reference, true);
        }
        self.publish();
    }

    /// # Errors
    /// `HANDLE_INVALID [class, ref]` for a reference that is not, or no longer, there (xapi.md 8).
    pub fn get(&self, class: &str, reference: &Ref) -> Result<&Record, Failure> {
        self.find(class, reference).ok_or_else(|| Failure::new("HANDLE_INVALID", [class, reference.as_str()]))
    }

    pub fn find(&self, class: &str, reference: &Ref) -> Option<&Record> {
        self.tables.get(class)?.rows.get(reference).map(|row| &*row.record)
    }

    /// A field of a row. A field that the class lacks reads as null: a mistake of the simulator, shown by its tests.
    ///
    /// # Errors
    /// As [`Db::get`].
    pub fn field(&self, class: &str, reference: &Ref, field: &str) -> Result<&Value, Failure> {
        static NULL: Value = Value::Null;
        Ok(self.get(class, reference)?.get(field).unwrap_or(&NULL))
    }

    /// # Errors
    /// As [`Db::get`].
    pub fn text(&self, class: &str, reference: &Ref, field: &str) -> Result<&str, Failure> {
        Ok(self.field(class, reference, field)?.as_str().unwrap_or_default())
    }

    /// # Errors
    /// As [`Db::get`].
    pub fn flag(&self, class: &str, reference: &Ref, field: &str) -> Result<bool, Failure> {
        Ok(self.field(class, reference, field)?.as_bool().unwrap_or_default())
    }

    /// # Errors
    /// As [`Db::get`].
    pub fn int(&self, class: &str, reference: &Ref, field: &str) -> Result<i64, Failure> {
        Ok(self.field(class, reference, field)?.as_i64().unwrap_or_default())
    }

    /// # Errors
    /// As [`Db::get`].
    pub fn link_to(&self, class: &str, reference: &Ref, field: &str) -> Result<Ref, Failure> {
        Ok(as_ref(self.field(class, reference, field)?))
    }

    /// A field that is a set of references.
    ///
    /// # Errors
    /// As [`Db::get`].
    pub fn links(&self, class: &str, reference: &Ref, field: &str) -> Result<Vec<Ref>, Failure> {
        let set = self.field(class, reference, field)?.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(set.iter().map(as_ref).collect())
    }

    /// Every row of a class.
    pub fn all(&self, class: &str) -> impl Iterator<Item = (&Ref, &Record)> {
        self.tables.get(class).into_iter().flat_map(|t| t.rows.iter().map(|(r, row)| (r, &*row.record)))
    }

    /// # Errors
    /// `UUID_INVALID [class, uuid]` where there is none (xapi.md 8).
    pub fn by_uuid(&self, class: &str, uuid: &str) -> Result<Ref, Failure> {
        let mut all = self.all(class);
        let hit = all.find(|(_, record)| record.get("uuid").and_then(Value::as_str) == Some(uuid));
        hit.map(|(r, _)| r.clone()).ok_or_else(|| Failure::new("UUID_INVALID", [class, uuid]))
    }

    /// Sets one field: one generation, one event.
    ///
    /// # Errors
    /// As [`Db::get`].
    pub fn set(&mut self, class: &str, reference: &Ref, field: &str, value: Value) -> Result<(), Failure> {
        self.update(class, reference, |record| {
            record.insert(field.to_owned(), value);
        })
    }

    /// Changes several fields in one generation: seen at once, in one event. An unchanged row makes no event.
    ///
    /// # Errors
    /// As [`Db::get`].
    pub fn update(&mut self, class: &str, reference: &Ref, change: impl FnOnce(&mut Record)) -> Result<(), Failure> {
        let mut next = self.get(class, reference)?.clone();
        change(&mut next);
        self.replace(class, reference, next);
        self.publish();
        Ok(())
    }

    fn replace(&mut self, class: &str, reference: &Ref, next: Record) {
        let Some(before) = self.tables.get(class).and_then(|t| t.rows.get(reference)).map(|r| Arc::clone(&r.record))
        else {
            return;
        };
        if *before == next {
            return;
        }
        let moved: Vec<(&str, Ref, Ref)> = links_of(class)
            .map(|r| (r.field.as_str(), before.get(&r.field).map(as_ref), next.get(&r.field).map(as_ref)))
            .map(|(field, old, new)| (field, old.unwrap_or_default(), new.unwrap_or_default()))
            .filter(|(_, old, new)| old != new)
            .collect();
        self.store(class, reference, Some(next));
        for (field, old, new) in moved {
            self.link(class, field, &old, reference, false);
            self.link(class, field, &new, reference, true);
        }
    }

    /// Makes an event for a row without changing it (`event.inject`).
    ///
    /// # Errors
    /// As [`Db::get`].
    pub fn touch(&mut self, class: &str, reference: &Ref) -> Result<(), Failure> {
        self.get(class, reference)?;
        self.store(class, reference, None);
        self.publish();
        Ok(())
    }

    /// Removes a row if it is there. References elsewhere dangle, but the inverse sets lose it.
    pub fn delete(&mut self, class: &str, reference: &Ref) {
        let Some(table) = self.tables.get_mut(class) else { return };
        let Some(row) = table.rows.remove(reference) else { return };
        self.generation += 1;
        let deleted = self.generation;
        table.deletions.push_back(Deletion { reference: reference.clone(), created: row.created, deleted });
        if table.deletions.len() > DELETIONS.0 {
            table.deletions.drain(..table.deletions.len() - DELETIONS.1);
        }
        self.journal.remove(&row.modified);
        for relation in links_of(class) {
            let target = row.record.get(&relation.field).map(as_ref).unwrap_or_default();
            self.link(class, &relation.field, &target, reference, false);
        }
        self.publish();
    }

    /// Rows changed after a generation, oldest change first.
    pub fn changes_since(&self, generation: u64) -> impl Iterator<Item = Change<'_>> {
        self.journal.range(generation + 1..).filter_map(|(_, (class, reference))| {
            let row = self.tables.get(class)?.rows.get(reference)?;
            Some(Change { class, reference, record: &row.record, created: row.created, modified: row.modified })
        })
    }

    /// The deletions that are still remembered.
    pub fn deletions(&self) -> impl Iterator<Item = (&'static str, &Deletion)> {
        self.tables.iter().flat_map(|(class, table)| table.deletions.iter().map(|d| (*class, d)))
    }

    /// Rows per class.
    pub fn count(&self, class: &str) -> usize {
        self.tables.get(class).map_or(0, |t| t.rows.len())
    }

    /// Writes the database out: every five minutes, at a clean stop, at `pool.sync_database` (xapi.md 14, Durability).
    pub fn flush(&mut self) {
        self.written = (self.tables.clone(), self.generation);
    }

    /// What a new process reads: the rows last written out, no session, no task, no memory of deletions.
    pub fn reload(&mut self) {
        (self.tables, self.generation) = self.written.clone();
        for (class, table) in &mut self.tables {
            table.deletions.clear();
            if VOLATILE.contains(class) {
                table.rows.clear();
            }
        }
        let rows =
            self.tables.iter().flat_map(|(class, t)| t.rows.iter().map(|(r, row)| (row.modified, (*class, r.clone()))));
        self.journal = rows.collect();
        self.next();
        self.publish();
    }

    fn next(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    fn publish(&self) {
        self.changed.send_replace(self.generation);
    }

    /// Gives a row the next generation, and new content if there is any.
    fn store(&mut self, class: &str, reference: &Ref, record: Option<Record>) {
        let generation = self.next();
        let Some((name, table)) = self.tables.iter_mut().find(|(name, _)| **name == class) else { return };
        let Some(row) = table.rows.get_mut(reference) else { return };
        self.journal.remove(&row.modified);
        row.modified = generation;
        if let Some(record) = record {
            row.record = Arc::new(record);
        }
        self.journal.insert(generation, (*name, reference.clone()));
    }

    /// Keeps the inverse set of a reference; the row that holds the set changes too, as it does in XAPI.
    fn link(&mut self, many: &str, field: &str, target: &Ref, reference: &Ref, present: bool) {
        let Some(relation) = schema().relations.iter().find(|r| r.many == many && r.field == field) else { return };
        let Some(record) = self.find(&relation.one, target) else { return };
        let mut next = record.clone();
        let mut set: Vec<Value> = next.get(&relation.set).and_then(Value::as_array).cloned().unwrap_or_default();
        set.retain(|v| v.as_str() != Some(reference.as_str()));
        if present {
            set.push(json!(reference));
        }
        next.insert(relation.set.clone(), Value::Array(set));
        self.replace(&relation.one, target, next);
    }
}

fn links_of(class: &str) -> impl Iterator<Item = &'static super::schema::Relation> {
    schema().relations.iter().filter(move |r| r.many == class)
}

fn as_ref(value: &Value) -> Ref {
    Ref(value.as_str().unwrap_or(Ref::NULL).to_owned())
}
