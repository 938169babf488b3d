//! The tree of nodes, by itself.

use super::*;

fn disk(disks: &mut Disks) -> String {
    disks.create(Node { sr: "sr".into(), virtual_size: 5 << 20, ..Node::default() })
}

#[test]
fn children_read_through_and_neither_sees_the_others_writes() {
    let mut disks = Disks::default();
    let source = disk(&mut disks);
    assert_eq!(disks.get(&source).unwrap().virtual_size, 6 << 20);
    disks.write(&source, 0, b"old").unwrap();
    let before = disks.digest(&source).unwrap();
    let branch = disks.branch(&source).unwrap();
    assert!(branch.base.is_some());
    assert_eq!(disks.digest(&branch.child).unwrap(), before);
    disks.write(&source, 0, b"new").unwrap();
    assert_eq!(&disks.read(&branch.child, 0).unwrap()[..4], b"old\0");
    assert_eq!(&disks.read(&source, 0).unwrap()[..4], b"new\0");
    assert_eq!(disks.branch(&branch.child).unwrap().base, None, "an empty leaf is no level of its own");
}

#[test]
fn coalescing_changes_the_tree_and_no_byte() {
    let mut disks = Disks::default();
    let source = disk(&mut disks);
    disks.write(&source, 1, &pattern(7, 1)).unwrap();
    let child = disks.branch(&source).unwrap().child;
    disks.write(&child, 2, &pattern(7, 2)).unwrap();
    let before = disks.digest(&child).unwrap();
    disks.remove(&source).unwrap();
    assert!(!disks.coalesce("sr", |_, _| false).unwrap(), "a busy child stays as it is");
    assert!(disks.coalesce("sr", |_, _| true).unwrap());
    assert_eq!((disks.digest(&child).unwrap(), disks.depth(&child)), (before, 1));
    assert_eq!(disks.on("sr").count(), 1);
}

#[test]
fn the_thirty_first_level_is_refused_and_ends_are_kept() {
    let mut disks = Disks::default();
    let leaf = disk(&mut disks);
    for seed in 1..30 {
        disks.write(&leaf, 0, &[seed]).unwrap();
        disks.branch(&leaf).unwrap();
    }
    disks.write(&leaf, 0, &[31]).unwrap();
    assert!(matches!(disks.branch(&leaf), Err(DiskError::TooDeep(_))));
    assert!(matches!(disks.write(&leaf, 3, &[1]), Err(DiskError::Beyond(..))));
    assert!(matches!(disks.read("gone", 0), Err(DiskError::Missing(_))));
}
