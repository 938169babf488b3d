//! What changes in a view, and how events and listings are taken into it. Pure: used by the mirror, which does the asking.

use std::collections::HashSet;
use std::sync::Arc;

use super::calls::parse;
use super::model::{Class, GuestMetrics, Host, Network, Pbd, Pool, Sm, Sr, Task, Vbd, Vdi, Vif, Vm, VmMetrics};
use super::view::{Row, Table, View};
use super::wire::{Event, Ref};

/// One object that is other than it was, in a field that we read.
#[derive(Debug)]
pub enum Change {
    Pool(Diff<Pool>),
    Host(Diff<Host>),
    Sr(Diff<Sr>),
    Pbd(Diff<Pbd>),
    Sm(Diff<Sm>),
    Vdi(Diff<Vdi>),
    Vbd(Diff<Vbd>),
    Vif(Diff<Vif>),
    Vm(Diff<Vm>),
    /// `vm`: the machine measured; metrics do not name it.
    VmMetrics {
        vm: Option<Ref>,
        diff: Diff<VmMetrics>,
    },
    GuestMetrics {
        vm: Option<Ref>,
        diff: Diff<GuestMetrics>,
    },
    Network(Diff<Network>),
    Task(Diff<Task>),
    /// Everything was listed anew: a first look, a new session, the slow resync.
    Relisted,
}

#[derive(Debug)]
pub struct Diff<T> {
    pub reference: Ref,
    pub old: Option<Arc<T>>,
    pub new: Option<Arc<T>>,
}

impl Change {
    /// Once a batch is applied, since the machine may come after its metrics in it.
    pub(super) fn name_machine(&mut self, view: &View) {
        let machine = |metrics: &Ref| view.vm_of_metrics(metrics).map(|(vm, _)| vm.clone());
        match self {
            Change::VmMetrics { vm, diff } => *vm = machine(&diff.reference),
            Change::GuestMetrics { vm, diff } => *vm = machine(&diff.reference),
            Change::Pool(_)
            | Change::Host(_)
            | Change::Sr(_)
            | Change::Pbd(_)
            | Change::Sm(_)
            | Change::Vdi(_)
            | Change::Vbd(_)
            | Change::Vif(_)
            | Change::Vm(_)
            | Change::Network(_)
            | Change::Task(_)
            | Change::Relisted => {}
        }
    }
}

/// A class that the view has a table of.
pub(super) trait Mirrored: Row {
    fn table(view: &mut View) -> &mut Arc<Table<Self>>;
    fn change(diff: Diff<Self>) -> Change;
}

/// The classes mirrored, each with its table and how its changes are told.
macro_rules! mirrored {
    ($($class:ident $table:ident $change:expr;)*) => {
        /// As subscribed to.
        pub(super) const CLASSES: &[&str] = &[$(<$class as Class>::NAME),*];

        $(impl Mirrored for $class {
            fn table(view: &mut View) -> &mut Arc<Table<Self>> {
                &mut view.$table
            }

            fn change(diff: Diff<Self>) -> Change {
                $change(diff)
            }
        })*

        /// Takes one event in; of a class that is not mirrored, nothing.
        pub(super) fn apply(view: &mut View, event: Event, changes: &mut Vec<Change>) {
            $(if event.class.eq_ignore_ascii_case(<$class as Class>::NAME) {
                return apply_to::<$class>(view, &event, changes);
            })*
        }

        /// Puts a whole pool in the place of another.
        pub(super) fn replace_all(view: &mut View, new: View, changes: &mut Vec<Change>) {
            $(replace(view, Arc::unwrap_or_clone(new.$table), changes);)*
        }
    };
}

mirrored! {
    Pool pools Change::Pool;
    Host hosts Change::Host;
    Sr srs Change::Sr;
    Pbd pbds Change::Pbd;
    Sm sms Change::Sm;
    Vdi vdis Change::Vdi;
    Vbd vbds Change::Vbd;
    Vif vifs Change::Vif;
    Vm vms Change::Vm;
    VmMetrics vm_metrics |diff| Change::VmMetrics { vm: None, diff };
    GuestMetrics guest_metrics |diff| Change::GuestMetrics { vm: None, diff };
    Network networks Change::Network;
    Task tasks Change::Task;
}

/// Awaits `self.call::<Class>(args)` for every class mirrored, one after the other, until one fails.
macro_rules! every_class {
    ($self:ident.$call:ident $args:tt) => {
        every_class!(@ $self $call $args Pool Host Sr Pbd Sm Vdi Vbd Vif Vm VmMetrics GuestMetrics Network Task)
    };
    (@ $self:ident $call:ident $args:tt $($class:ident)*) => {{
        $($self.$call::<$class> $args.await?;)*
        Ok(())
    }};
}
pub(super) use every_class;

fn apply_to<T: Mirrored>(view: &mut View, event: &Event, changes: &mut Vec<Change>) {
    let reference = event.reference.clone();
    if event.operation == "del" {
        let table = T::table(view);
        if table.contains(&reference) {
            let old = Arc::make_mut(table).remove(&reference);
            tell(view, Diff { reference, old, new: None }, changes);
        }
        return;
    }
    let new = event.snapshot.as_ref().and_then(|row| parse::<T>(&reference, row)).map(Arc::new);
    // Most events are about fields that we do not read: they must not cost a copy of the table.
    if new.is_some() && T::table(view).get(&reference) == new.as_ref() {
        return;
    }
    let old = Arc::make_mut(T::table(view)).put(&reference, new.clone());
    tell(view, Diff { reference, old, new }, changes);
}

/// Puts a whole table in the place of another.
pub(super) fn replace<T: Mirrored>(view: &mut View, new: Table<T>, changes: &mut Vec<Change>) {
    let new = Arc::new(new);
    let old = std::mem::replace(T::table(view), new.clone());
    let both: HashSet<&Ref> = old.references().chain(new.references()).collect();
    for reference in both {
        let diff =
            Diff { reference: reference.clone(), old: old.get(reference).cloned(), new: new.get(reference).cloned() };
        tell(view, diff, changes);
    }
}

fn tell<T: Mirrored>(view: &mut View, diff: Diff<T>, changes: &mut Vec<Change>) {
    if diff.old == diff.new {
        return;
    }
    let change = T::change(diff);
    if let Change::Vm(diff) = &change {
        view.remeasure(&diff.reference, diff.old.as_deref(), diff.new.as_deref());
    }
    changes.push(change);
}
