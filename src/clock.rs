//! hyper's timer on tokio's clock. Without one, hyper's header deadline and its keep-alive pings are silently off.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use hyper::rt::Sleep;
use hyper::rt::Timer;

/// To be handed to every hyper builder, on both sides.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokioTimer;

impl Timer for TokioTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(TokioSleep { inner: Box::pin(tokio::time::sleep(duration)) })
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(TokioSleep { inner: Box::pin(tokio::time::sleep_until(deadline.into())) })
    }

    /// tokio's clock and not the system's, so that tests which pause time pause hyper too.
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<TokioSleep>() {
            Some(ours) => ours.get_mut().inner.as_mut().reset(new_deadline.into()),
            None => *sleep = self.sleep_until(new_deadline),
        }
    }
}

/// tokio's `Sleep` cannot move and hyper wants to look inside the box it got. The second box makes that possible
/// without `unsafe`; it costs one small allocation a connection.
struct TokioSleep {
    inner: Pin<Box<tokio::time::Sleep>>,
}

impl Sleep for TokioSleep {}

impl Future for TokioSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.inner.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn sleeps_and_resets() {
        block_on(async {
            let timer = TokioTimer;
            let started = timer.now();
            let mut sleep = timer.sleep(Duration::from_secs(3600));
            timer.reset(&mut sleep, started + Duration::from_millis(20));
            sleep.await;
            let waited = timer.now() - started;
            assert!(waited >= Duration::from_millis(20) && waited < Duration::from_secs(60), "{waited:?}");

            timer.sleep_until(started).await;
        });
    }
}
