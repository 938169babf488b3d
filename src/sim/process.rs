//! The life of the daemon's process: what runs in it, and dies with it.
//!
//! Every call, and every connection, runs inside the process. When it stops they are dropped where they stand, as a killed daemon drops them;
//! nothing of them runs on once [`Pool::stop`] has returned, so that the database can be read anew.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Pool, task};

struct Epoch {
    end: CancellationToken,
    /// Everything that runs holds a clone: the channel closes with the last of them.
    alive: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

/// The running process; `None` while it is down.
pub struct Process(Mutex<Option<Epoch>>);

impl Default for Process {
    fn default() -> Self {
        Self(Mutex::new(Some(Epoch::new())))
    }
}

impl Epoch {
    fn new() -> Self {
        let (alive, ended) = mpsc::channel(1);
        Self { end: CancellationToken::new(), alive, ended }
    }
}

impl Pool {
    /// Runs something that dies with the daemon. While the daemon is down it is dropped unrun.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let process = self.process.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(epoch) = &*process else { return };
        let (end, alive) = (epoch.end.clone(), epoch.alive.clone());
        tokio::spawn(async move {
            let _alive = alive;
            end.run_until_cancelled_owned(work).await;
        });
    }

    /// Kills the daemon: connections break, calls stop where they stand, queued ones are lost (xapi.md 14, Replay). The database is left
    /// as it is: what follows a clean stop is `flush` and `reload`, an unclean one `reload` alone.
    pub async fn stop(&self) {
        let epoch = self.process.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Epoch { end, alive, mut ended }) = epoch else { return };
        end.cancel();
        drop(alive);
        // Nothing is ever sent: this returns when the last holder is gone.
        ended.recv().await;
        task::forget_all(self);
    }

    /// Ends everything without waiting, for good.
    pub(super) fn end(&self) {
        if let Some(epoch) = self.process.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            epoch.end.cancel();
        }
    }

    /// Starts the daemon, with its collector.
    pub fn resume(self: &Arc<Self>) {
        *self.process.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Epoch::new());
        self.spawn(task::collector(Arc::clone(self)));
    }
}
