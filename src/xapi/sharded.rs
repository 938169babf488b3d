//! A hash map that is cheap to copy and to change after a copy: split into shards of which a change copies one.
//!
//! The tables of a view are copied whenever a batch of events meets a reader. Copying a plain map of the 15,000 disks of 5,000
//! layers with its indices took 17 ms, many times a second on a busy pool; copying the shards that one disk is in takes
//! 0.2 ms. Used by `view` alone.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

const SHARDS: usize = 128;

#[derive(Clone, Debug)]
pub struct Sharded<K, V>(Vec<Arc<HashMap<K, V>>>);

impl<K, V> Default for Sharded<K, V> {
    fn default() -> Self {
        // One empty shard serves for all until it is changed.
        Self(vec![Arc::default(); SHARDS])
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Sharded<K, V> {
    pub fn get_key_value<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.0.get(shard(key))?.get_key_value(key)
    }

    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(shard(key))?.get(key)
    }

    pub fn insert(&mut self, key: K, value: V) {
        if let Some(shard) = self.0.get_mut(shard(&key)) {
            Arc::make_mut(shard).insert(key, value);
        }
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let shard = self.0.get_mut(shard(key))?;
        // Nothing to remove is no reason to copy.
        if shard.contains_key(key) { Arc::make_mut(shard).remove(key) } else { None }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().flat_map(|shard| shard.iter())
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.len()).sum()
    }
}

/// Below `SHARDS`, which every map has: the indexing above never misses.
fn shard<Q: Hash + ?Sized>(key: &Q) -> usize {
    (BuildHasherDefault::<DefaultHasher>::default().hash_one(key) as usize) % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map_and_a_copy_stays_as_it_was() {
        let mut map = Sharded::<String, u32>::default();
        (0..1000).for_each(|n| map.insert(n.to_string(), n));
        let copy = map.clone();
        assert_eq!(map.remove("7"), Some(7));
        assert_eq!(map.remove("7"), None);
        map.insert("8".to_owned(), 108);
        assert_eq!((map.len(), map.get("7"), map.get("8")), (999, None, Some(&108)));
        assert_eq!((copy.len(), copy.get("7"), copy.get("8")), (1000, Some(&7), Some(&8)));
        assert_eq!(copy.iter().map(|(_, n)| n).sum::<u32>(), 499_500);
        let copied = map.0.iter().zip(&copy.0).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!(copied <= 2, "{copied} shards were copied for two changes");
    }
}
