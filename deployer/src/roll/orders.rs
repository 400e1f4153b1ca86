//! What somebody asks of a deploy that is under way.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// What a deploy is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    #[default]
    None,
    /// Flip; at an instant in milliseconds since 1970, or as planned.
    Flip {
        /// The instant.
        at_ms: Option<u64>,
    },
    /// Go back to the old pool.
    Rollback {
        /// Who asks.
        by: String,
    },
    /// Make room for another deploy.
    Supersede {
        /// Who asks.
        by: String,
    },
}

/// The orders that a deploy has not heard yet.
#[derive(Debug, Default)]
pub struct Orders {
    flip: Mutex<Order>,
    after: Mutex<Order>,
    news: Notify,
}

impl Orders {
    /// Gives an order. A rollback stands above another deploy: what is asked for last counts otherwise.
    pub fn give(&self, order: Order) {
        match order {
            Order::None => return,
            Order::Flip { .. } => *lock(&self.flip) = order,
            Order::Rollback { .. } => *lock(&self.after) = order,
            Order::Supersede { .. } => {
                let mut after = lock(&self.after);
                if *after == Order::None {
                    *after = order;
                }
            }
        }
        self.news.notify_one();
    }

    /// Takes the order to flip, if there is one.
    pub fn take_before_flip(&self) -> Order {
        std::mem::take(&mut *lock(&self.flip))
    }

    /// Takes what was asked for after the flip.
    pub fn take_after_flip(&self) -> Order {
        std::mem::take(&mut *lock(&self.after))
    }

    /// Has who waits look again.
    pub fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits for an order, at most so long.
    pub async fn wait(&self, most: Duration) {
        let _ = tokio::time::timeout(most, self.news.notified()).await;
    }
}

fn lock(order: &Mutex<Order>) -> MutexGuard<'_, Order> {
    // A panic elsewhere leaves it as good as it was.
    order.lock().unwrap_or_else(PoisonError::into_inner)
}
