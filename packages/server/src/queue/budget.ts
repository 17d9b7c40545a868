/**
 * The number of messages whose time has come that a turn may still handle, in all queues together: due messages that become
 * ready, and expired messages that are removed. A chunk whose retention ends counts as several messages. The broker has one
 * such object, and refills it at the end of each turn.
 */
export interface Budget {
  /** Not above 0 if nothing may be handled any more. */
  left: number
}

/** For work that does not belong to a turn. */
export const UNLIMITED: Budget = { left: Infinity }
