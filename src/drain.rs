//! The end of the process in three steps: not ready, no new connections, open streams cut.

use tokio::sync::watch;

/// How far the end has come. Only ever moves forward.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Serving.
    Open,
    /// Not ready any more, still accepting, so that load balancers can notice.
    Unready,
    /// No new connections; h2 clients got GOAWAY, h1 clients `connection: close`.
    Closing,
    /// The deadline has passed: whatever is still open is cut.
    Cut,
}

/// Starts the end. Held by the process's main task.
pub(crate) struct DrainTrigger(watch::Sender<Phase>);

/// Sees how far the end has come. One per connection and accept loop.
#[derive(Clone)]
pub(crate) struct DrainWatcher(watch::Receiver<Phase>);

/// A connected pair.
pub(crate) fn channel() -> (DrainTrigger, DrainWatcher) {
    let (sender, receiver) = watch::channel(Phase::Open);
    (DrainTrigger(sender), DrainWatcher(receiver))
}

impl DrainTrigger {
    /// Moves to `phase`; an earlier one changes nothing.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = *now < phase;
            if forward {
                *now = phase;
            }
            forward
        });
    }
}

impl DrainWatcher {
    /// Where it stands.
    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Whether it has moved since this watcher was made or cloned. No lock.
    pub(crate) fn has_moved(&self) -> bool {
        self.0.has_changed().unwrap_or(true)
    }

    /// Returns once `phase` or a later one is reached. Never returns if the trigger is gone before.
    pub(crate) async fn reached(&mut self, phase: Phase) {
        if self.0.wait_for(|now| *now >= phase).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
