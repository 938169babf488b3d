//! The in-memory Windows as something to act on, and its store.

use std::time::Duration;

use super::{Deed, Reply, State, Windows};
use crate::channel::{Store, StoreError};
use crate::deeds::{Deeds, Done, Ended, Failed, Job};
use crate::facts::View;

impl Windows {
    /// Notes a deed and asks the script how it goes.
    fn deed(&self, what: String, deed: Deed, effect: impl FnOnce(&mut State) -> Result<(), String>) -> Done<Reply> {
        let mut state = self.lock();
        state.deeds.push(deed.clone());
        let reply = (self.script)(&mut state, &deed);
        let done = match &reply {
            Reply::Fails(why) => Err(why.clone()),
            Reply::Usual | Reply::Ended(_) => effect(&mut state),
        };
        done.map(|()| reply).map_err(|why| Failed { what, why })
    }

    fn in_store<T>(
        &self,
        what: String,
        act: impl FnOnce(&mut std::collections::BTreeMap<String, String>) -> T,
    ) -> Result<T, StoreError> {
        let mut state = self.lock();
        match &mut state.store {
            Some(store) => Ok(act(store)),
            None => Err(StoreError { what, why: "no driver answers".to_owned() }),
        }
    }
}

/// Running the queue empties it, of its own architecture.
fn run(state: &mut State, job: &Job) {
    let framework64 = job.program.to_lowercase().contains(r"\framework64\");
    if job.args.to_lowercase().starts_with("executequeueditems") {
        let architecture = if framework64 { "WIN64" } else { "WIN32" };
        for view in View::BOTH {
            state.unmake(view, &format!(r"SOFTWARE\Microsoft\.NETFramework\NGenQueue\{architecture}"));
        }
    }
}

impl Deeds for Windows {
    fn run(&self, job: &Job) -> Done<Ended> {
        let reply = self.deed(format!("run {}", job.program), Deed::Run(job.clone()), |state| {
            run(state, job);
            Ok(())
        })?;
        Ok(match reply {
            Reply::Ended(ended) => ended,
            Reply::Usual | Reply::Fails(_) => Ended::Code(0),
        })
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Done<()> {
        let write = |state: &mut State| {
            state.put(path, bytes);
            Ok(())
        };
        self.deed(format!("write {path}"), Deed::Write(path.to_owned()), write).map(drop)
    }

    fn remove(&self, path: &str) -> Done<()> {
        let remove = |state: &mut State| {
            state.delete(path);
            Ok(())
        };
        self.deed(format!("remove {path}"), Deed::Remove(path.to_owned()), remove).map(drop)
    }

    fn rearm(&self) -> Done<()> {
        let rearm = |state: &mut State| {
            state.rearms = state.rearms.checked_sub(1).ok_or("no rearm is left (0xC004D307)")?;
            Ok(())
        };
        self.deed("rearm Windows".to_owned(), Deed::Rearm, rearm).map(drop)
    }

    fn remove_card(&self, id: &str) -> Done<()> {
        let remove = |state: &mut State| {
            state.cards.retain(|c| !c.id.eq_ignore_ascii_case(id));
            Ok(())
        };
        self.deed(format!("remove network card {id}"), Deed::RemoveCard(id.to_owned()), remove).map(drop)
    }

    fn power_off(&self, after: Duration) -> Done<()> {
        self.deed("turn the machine off".to_owned(), Deed::PowerOff(after), |_| Ok(())).map(drop)
    }

    fn stay_on(&self) -> Done<()> {
        self.deed("keep the machine on".to_owned(), Deed::StayOn, |_| Ok(())).map(drop)
    }

    fn reboot(&self) -> Done<()> {
        self.deed("reboot".to_owned(), Deed::Reboot, |_| Ok(())).map(drop)
    }

    fn wait(&self, time: Duration) {
        (self.sleeper)(time);
        let mut state = self.lock();
        state.pass(time);
        state.deeds.push(Deed::Wait(time));
        // Nothing keeps time from passing, whatever the script answers.
        drop((self.script)(&mut state, &Deed::Wait(time)));
    }
}

impl Store for Windows {
    fn read(&self, path: &str) -> Result<Option<String>, StoreError> {
        self.in_store(format!("read {path}"), |store| store.get(path).cloned())
    }

    fn write(&self, path: &str, value: &str) -> Result<(), StoreError> {
        self.in_store(format!("write {path}"), |store| drop(store.insert(path.to_owned(), value.to_owned())))
    }

    fn remove(&self, path: &str) -> Result<(), StoreError> {
        let below = format!("{path}/");
        self.in_store(format!("remove {path}"), |store| store.retain(|k, _| k != path && !k.starts_with(&below)))
    }
}
