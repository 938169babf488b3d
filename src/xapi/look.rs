//! A look at the live pool, for the moment before something is created, started or destroyed. Nothing of the mirror is in it.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::try_join_all;

use super::calls::Records;
use super::client::Client;
use super::error::Error;
use super::model::{Vbd, Vdi, Vif, Vm};
use super::view::{Row, Table, View};
use super::wire::Ref;

/// What to look at besides tasks, pool, hosts, SRs and PBDs. What was not asked for is not in the view: its absence there
/// proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// All disks of this SR: a half-made child may bear any name.
    pub sr: Option<Ref>,
    /// These disks, their VBDs and the machines behind those.
    pub disks: Vec<Ref>,
    /// All machines and all VBDs: a machine is searched by its keys.
    pub all_machines: bool,
    /// These machines with VBDs, VIFs, metrics and guest metrics.
    pub machines: Vec<Ref>,
}

/// Asks the live pool. An object that is gone is absent; every other failure fails the look.
pub async fn look(client: &Client, scope: &Scope) -> Result<View, Error> {
    // Tasks come before all else: one that ends while we look has its child in what is read later. The other way round the
    // child of a call that has just ended would be in neither.
    let tasks = all(client).await?;
    let (pools, hosts, srs, pbds, vdis, (vbds, vms)) = tokio::try_join!(
        all(client),
        all(client),
        all(client),
        all(client),
        disks(client, scope),
        machines(client, scope),
    )?;
    let seen: Vec<Arc<Vm>> = scope.machines.iter().filter_map(|vm| vms.get(vm).cloned()).collect();
    let (vifs, vm_metrics, guest_metrics) = tokio::try_join!(
        cards(client, scope),
        these(client, seen.iter().map(|vm| &vm.metrics)),
        these(client, seen.iter().map(|vm| &vm.guest_metrics)),
    )?;
    let mut view = View {
        synced: true,
        tasks: Arc::new(tasks),
        pools: Arc::new(pools),
        hosts: Arc::new(hosts),
        srs: Arc::new(srs),
        pbds: Arc::new(pbds),
        vdis: Arc::new(vdis),
        vbds: Arc::new(vbds),
        vms: Arc::new(vms),
        vifs: Arc::new(vifs),
        vm_metrics: Arc::new(vm_metrics),
        guest_metrics: Arc::new(guest_metrics),
        ..View::default()
    };
    for (reference, vm) in view.vms.clone().iter() {
        view.remeasure(reference, None, Some(vm));
    }
    Ok(view)
}

async fn disks(client: &Client, scope: &Scope) -> Result<Table<Vdi>, Error> {
    let mut vdis = these(client, scope.disks.iter()).await?;
    if let Some(sr) = &scope.sr {
        fill(&mut vdis, client.read().get_all_records_where("SR", sr.as_str()).await?)?;
    }
    Ok(vdis)
}

/// VBDs before machines: a drive that appears in between belongs to a machine that is then seen with it.
async fn machines(client: &Client, scope: &Scope) -> Result<(Table<Vbd>, Table<Vm>), Error> {
    if scope.all_machines {
        let vbds = all(client).await?;
        return Ok((vbds, all(client).await?));
    }
    let of_disks = scope.disks.iter().map(|disk| client.read().get_all_records_where("VDI", disk.as_str()));
    let of_machines = scope.machines.iter().map(|vm| client.read().get_all_records_where("VM", vm.as_str()));
    let (of_disks, of_machines) = tokio::try_join!(try_join_all(of_disks), try_join_all(of_machines))?;
    let mut vbds = Table::<Vbd>::default();
    of_disks.into_iter().chain(of_machines).try_for_each(|records| fill(&mut vbds, records))?;
    let wanted: BTreeSet<Ref> = vbds.iter().map(|(_, vbd)| vbd.vm.clone()).chain(scope.machines.clone()).collect();
    let vms = these(client, wanted.iter()).await?;
    Ok((vbds, vms))
}

async fn cards(client: &Client, scope: &Scope) -> Result<Table<Vif>, Error> {
    let mut vifs = Table::default();
    let found = scope.machines.iter().map(|vm| client.read().get_all_records_where("VM", vm.as_str()));
    try_join_all(found).await?.into_iter().try_for_each(|records| fill(&mut vifs, records))?;
    Ok(vifs)
}

async fn all<T: Row>(client: &Client) -> Result<Table<T>, Error> {
    let mut table = Table::default();
    fill(&mut table, client.read().get_all_records().await?)?;
    Ok(table)
}

async fn these<T: Row>(client: &Client, references: impl Iterator<Item = &Ref>) -> Result<Table<T>, Error> {
    let each = references.filter(|r| !r.is_null()).map(|reference| async move {
        match client.read().get_record::<T>(reference).await {
            Ok(row) => Ok(Some((reference.clone(), row))),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    });
    let mut table = Table::default();
    for (reference, row) in try_join_all(each).await?.into_iter().flatten() {
        table.put(&reference, Some(Arc::new(row)));
    }
    Ok(table)
}

/// An odd row fails the look: it may be the very one whose absence would be acted upon.
fn fill<T: Row>(table: &mut Table<T>, records: Records<T>) -> Result<(), Error> {
    if let Some(reference) = records.odd.first() {
        return Err(Error::Unreadable { class: T::NAME, reference: reference.clone() });
    }
    table.fill(records);
    Ok(())
}
