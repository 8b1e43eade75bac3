//! Host and guest together.

use crate::machine::{Event, Part, Phase, Unexpected};

/// Which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// The machine's own system.
    Host,
    /// The confidential guest.
    Guest,
}

impl Which {
    /// Both.
    pub const ALL: [Which; 2] = [Which::Host, Which::Guest];
}

/// A node's upgrades.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node<R> {
    /// The host.
    pub host: Part<R>,
    /// The guest.
    pub guest: Part<R>,
}

/// An event is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It means nothing now.
    #[error(transparent)]
    Unexpected(#[from] Unexpected),
    /// The other part is being tried: if both change, nobody knows which one made the node ill.
    #[error("the other part is being tried; wait until that is committed or reverted")]
    OtherIsTried,
}

impl<R: Copy> Node<R> {
    /// One of the parts.
    pub fn part(&self, which: Which) -> &Part<R> {
        match which {
            Which::Host => &self.host,
            Which::Guest => &self.guest,
        }
    }

    /// The node after an event at one part.
    pub fn step(&self, which: Which, event: Event, release: Option<R>) -> Result<Node<R>, Refused> {
        let other = match which {
            Which::Host => &self.guest,
            Which::Guest => &self.host,
        };
        let tried = matches!(other.phase, Phase::Trying | Phase::Healthy | Phase::Reverting);
        if event == Event::Try && tried {
            return Err(Refused::OtherIsTried);
        }
        let part = self.part(which).step(event, release)?;
        Ok(match which {
            Which::Host => Node { host: part, ..*self },
            Which::Guest => Node { guest: part, ..*self },
        })
    }

    /// The node after the machine lost power, which takes the guest with it.
    pub fn power_cut(&self) -> Result<Node<R>, Refused> {
        Ok(Node { host: self.host.step(Event::Crash, None)?, guest: self.guest.step(Event::Crash, None)? })
    }
}
