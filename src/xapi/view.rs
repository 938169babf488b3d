//! The objects of a pool in memory, as the mirror keeps them. Readers get a copy that never changes.
//!
//! A copy costs one `Arc` a table. The mirror changes a table in place unless a reader still holds it, and then copies of
//! that one table the shards that it changes.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, OnceLock};

use super::calls::Records;
use super::model::{Class, GuestMetrics, Host, Map, Network, Pbd, Pool, Sm, Sr, Task, Vbd, Vdi, Vif, Vm, VmMetrics};
use super::sharded::Sharded;
use super::wire::Ref;
use crate::domain::identity::{MAKING, ROLE, Role};

/// The objects of one class.
#[derive(Clone, Debug)]
pub struct Table<T> {
    rows: Sharded<Ref, Arc<T>>,
    /// Rows that are there and cannot be read: counted, so that the number of rows is the pool's.
    odd: HashSet<Ref>,
    uuids: Sharded<String, Ref>,
    /// Rows by (other_config key, value), for the keys asked for.
    marked: Sharded<(&'static str, String), BTreeSet<Ref>>,
    keys: &'static [&'static str],
    /// Made when it is first asked for, and anew after a change.
    few: Arc<OnceLock<Few>>,
}

/// The rows that every pass looks for, whosever they are: sought once for each state of the table, not by each of thousands of layers.
#[derive(Debug, Default)]
struct Few {
    plain: Vec<Ref>,
    marked: Vec<Ref>,
    bases: Vec<Ref>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::indexed(&[])
    }
}

impl<T> Table<T> {
    /// An empty table that finds rows by these keys of other_config without a scan.
    pub(super) fn indexed(keys: &'static [&'static str]) -> Self {
        Self {
            rows: Sharded::default(),
            odd: HashSet::new(),
            uuids: Sharded::default(),
            marked: Sharded::default(),
            keys,
            few: Arc::default(),
        }
    }
}

impl<T: Row> Table<T> {
    pub fn get(&self, reference: &Ref) -> Option<&Arc<T>> {
        self.rows.get(reference)
    }

    pub fn by_uuid(&self, uuid: &str) -> Option<(&Ref, &Arc<T>)> {
        self.rows.get_key_value(self.uuids.get(uuid)?)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Ref, &Arc<T>)> {
        self.rows.iter()
    }

    /// Those whose other_config has this value: by index where the mirror was told of the key, else by a scan.
    pub fn with<'a>(&'a self, key: &str, value: &str) -> Box<dyn Iterator<Item = (&'a Ref, &'a Arc<T>)> + 'a> {
        match self.keys.iter().find(|k| **k == key) {
            Some(key) => {
                let found = self.marked.get(&(*key, value.to_owned()));
                Box::new(found.into_iter().flatten().filter_map(|r| self.rows.get_key_value(r)))
            }
            None => {
                let (key, value) = (key.to_owned(), value.to_owned());
                let same = move |row: &T| row.other_config().and_then(|m| m.get(&key)).is_some_and(|v| *v == value);
                Box::new(self.rows.iter().filter(move |(_, row)| same(row)))
            }
        }
    }

    /// Rows on the pool, as `valid_ref_counts` counts them.
    pub(super) fn count(&self) -> usize {
        self.rows.len() + self.odd.len()
    }

    pub(super) fn keys(&self) -> &'static [&'static str] {
        self.keys
    }

    pub(super) fn contains(&self, reference: &Ref) -> bool {
        self.rows.get(reference).is_some() || self.odd.contains(reference)
    }

    pub(super) fn fill(&mut self, records: Records<T>) {
        for (reference, row) in records.found {
            self.put(&reference, Some(Arc::new(row)));
        }
        self.odd.extend(records.odd);
    }

    pub(super) fn references(&self) -> impl Iterator<Item = &Ref> {
        self.rows.iter().map(|(reference, _)| reference).chain(&self.odd)
    }

    /// Puts a row in; `None` for one that cannot be read. Returns what was there.
    pub(super) fn put(&mut self, reference: &Ref, row: Option<Arc<T>>) -> Option<Arc<T>> {
        let old = self.remove(reference);
        self.few = Arc::default();
        let Some(row) = row else {
            self.odd.insert(reference.clone());
            return old;
        };
        self.uuids.insert(row.uuid().to_owned(), reference.clone());
        for entry in marks(self.keys, row.as_ref()) {
            let mut set = self.marked.remove(&entry).unwrap_or_default();
            set.insert(reference.clone());
            self.marked.insert(entry, set);
        }
        self.rows.insert(reference.clone(), row);
        old
    }

    pub(super) fn remove(&mut self, reference: &Ref) -> Option<Arc<T>> {
        self.odd.remove(reference);
        let old = self.rows.remove(reference)?;
        self.few = Arc::default();
        // A uuid may already belong to a newer row: a disk that was forgotten and found again.
        if self.uuids.get(old.uuid()) == Some(reference) {
            self.uuids.remove(old.uuid());
        }
        for entry in marks(self.keys, old.as_ref()) {
            let mut set = self.marked.remove(&entry).unwrap_or_default();
            set.remove(reference);
            if !set.is_empty() {
                self.marked.insert(entry, set);
            }
        }
        Some(old)
    }
}

impl Table<Vdi> {
    /// Managed disks without a role of ours: OS disks, discs, those of other machines.
    pub fn plain(&self) -> impl Iterator<Item = (&Ref, &Arc<Vdi>)> {
        self.all_of(&self.few().plain)
    }

    /// Disks with a mark, whosever it is.
    pub fn marked(&self) -> impl Iterator<Item = (&Ref, &Arc<Vdi>)> {
        self.all_of(&self.few().marked)
    }

    /// Disks that say they are shared bases.
    pub fn bases(&self) -> impl Iterator<Item = (&Ref, &Arc<Vdi>)> {
        self.all_of(&self.few().bases)
    }

    fn all_of<'a>(&'a self, few: &'a [Ref]) -> impl Iterator<Item = (&'a Ref, &'a Arc<Vdi>)> {
        few.iter().filter_map(|reference| self.rows.get_key_value(reference))
    }

    fn few(&self) -> &Few {
        self.few.get_or_init(|| {
            let mut few = Few::default();
            for (reference, vdi) in self.rows.iter() {
                let role = vdi.other_config.get(ROLE);
                if vdi.managed && role.is_none() {
                    few.plain.push(reference.clone());
                }
                if vdi.other_config.contains_key(MAKING) {
                    few.marked.push(reference.clone());
                }
                if role.is_some_and(|role| role == Role::Base.as_str()) {
                    few.bases.push(reference.clone());
                }
            }
            few
        })
    }
}

/// A pool for the tests of whoever judges one.
#[cfg(test)]
impl<T: Row> FromIterator<(Ref, T)> for Table<T> {
    fn from_iter<I: IntoIterator<Item = (Ref, T)>>(rows: I) -> Self {
        let mut table = Self::default();
        for (reference, row) in rows {
            table.put(&reference, Some(Arc::new(row)));
        }
        table
    }
}

fn marks<T: Row>(keys: &'static [&'static str], row: &T) -> Vec<(&'static str, String)> {
    let Some(map) = row.other_config() else { return Vec::new() };
    keys.iter().filter_map(|key| Some((*key, map.get(*key)?.clone()))).collect()
}

/// What a table needs to know of its rows.
pub trait Row: Class + PartialEq + Clone {
    fn other_config(&self) -> Option<&Map> {
        None
    }
}

macro_rules! rows {
    ($($plain:ident)*; $($keyed:ident)*) => {
        $(impl Row for $plain {})*
        $(impl Row for $keyed {
            fn other_config(&self) -> Option<&Map> {
                Some(&self.other_config)
            }
        })*
    };
}
rows!(Pbd Sm Vif VmMetrics GuestMetrics; Pool Host Sr Vdi Vbd Vm Network Task);

/// A pool. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// False: nothing may be concluded from it, least of all from what is missing.
    pub synced: bool,
    pub pools: Arc<Table<Pool>>,
    pub hosts: Arc<Table<Host>>,
    pub srs: Arc<Table<Sr>>,
    pub pbds: Arc<Table<Pbd>>,
    pub sms: Arc<Table<Sm>>,
    pub vdis: Arc<Table<Vdi>>,
    pub vbds: Arc<Table<Vbd>>,
    pub vifs: Arc<Table<Vif>>,
    pub vms: Arc<Table<Vm>>,
    pub vm_metrics: Arc<Table<VmMetrics>>,
    pub guest_metrics: Arc<Table<GuestMetrics>>,
    pub networks: Arc<Table<Network>>,
    pub tasks: Arc<Table<Task>>,
    /// Machines by the references of their metrics and guest metrics, whose records do not name them.
    pub(crate) measured: Arc<Sharded<Ref, Ref>>,
}

impl View {
    /// Disks and machines are found by these keys of other_config without a scan.
    pub(super) fn indexed(keys: &'static [&'static str]) -> Self {
        Self { vdis: Arc::new(Table::indexed(keys)), vms: Arc::new(Table::indexed(keys)), ..Self::default() }
    }

    /// A pool has exactly one record of itself.
    pub fn pool(&self) -> Option<(&Ref, &Arc<Pool>)> {
        self.pools.iter().next()
    }

    pub fn coordinator(&self) -> Option<(&Ref, &Arc<Host>)> {
        let (_, pool) = self.pool()?;
        self.hosts.rows.get_key_value(&pool.master)
    }

    /// When the coordinator's xapi started, in its own words: moves at each start.
    pub fn agent_start(&self) -> Option<&str> {
        self.coordinator()?.1.other_config.get("agent_start_time").map(String::as_str)
    }

    /// Keeps `measured` true after a machine came, changed or went.
    pub(super) fn remeasure(&mut self, vm: &Ref, old: Option<&Vm>, new: Option<&Vm>) {
        let of = |vm: &Vm| [vm.metrics.clone(), vm.guest_metrics.clone()];
        if old.map(of) == new.map(of) {
            return;
        }
        let measured = Arc::make_mut(&mut self.measured);
        for metrics in old.map(of).into_iter().flatten() {
            measured.remove(&metrics);
        }
        for metrics in new.map(of).into_iter().flatten().filter(|r| !r.is_null()) {
            measured.insert(metrics, vm.clone());
        }
    }

    /// A row that is there and cannot be read, of a class that creating, starting and destroying hang on.
    pub(super) fn unreadable(&self) -> Option<(&'static str, Ref)> {
        fn odd<T: Row>(table: &Table<T>) -> Option<(&'static str, Ref)> {
            Some((T::NAME, table.odd.iter().next()?.clone()))
        }
        odd(&self.vdis)
            .or_else(|| odd(&self.vms))
            .or_else(|| odd(&self.vbds))
            .or_else(|| odd(&self.tasks))
            .or_else(|| odd(&self.srs))
            .or_else(|| odd(&self.pbds))
            .or_else(|| odd(&self.hosts))
            .or_else(|| odd(&self.pools))
    }

    /// The machine that a record of metrics or guest metrics belongs to.
    pub fn vm_of_metrics(&self, metrics: &Ref) -> Option<(&Ref, &Arc<Vm>)> {
        self.vms.rows.get_key_value(self.measured.get(metrics)?)
    }
}
