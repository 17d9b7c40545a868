/** Settings of a session: its limits, and the count of unread bytes that all sessions share. */
import { LIMITS } from '@sluice/protocol'

export interface SessionSettings {
  readonly serverVersion: string
  readonly frameBytesMax: number
  /** Maximum heartbeat interval; a client can request a shorter interval. */
  readonly heartbeatMs: number
  readonly handshakeMs: number
  readonly inFlightBatchesMax: number
  readonly inFlightBytesMax: number
  /** A connection with more unread bytes than this gets no deliveries. */
  readonly outboundBytesSoft: number
  /**
   * A connection is closed when its unread bytes exceed the soft bound by more than this, or when they have exceeded
   * the soft bound for `stalledMs` and the client has read nothing.
   */
  readonly outboundBytesHard: number
  readonly stalledMs: number
  readonly subscriptionsMax: number
  readonly outbound: Outbound
}

/**
 * Unread bytes of all connections. While these bytes exceed `bytesMax`, each connection gets its next delivery when
 * it has read the previous delivery.
 */
export interface Outbound {
  bytes: number
  readonly bytesMax: number
}

export const SESSION_DEFAULTS: SessionSettings = {
  serverVersion: '',
  frameBytesMax: LIMITS.frameBytesDefault,
  heartbeatMs: LIMITS.heartbeatMsDefault,
  handshakeMs: LIMITS.handshakeMsMax,
  inFlightBatchesMax: LIMITS.inFlightBatchesDefault,
  inFlightBytesMax: LIMITS.inFlightBytesDefault,
  outboundBytesSoft: 1 << 20,
  outboundBytesHard: 8 << 20,
  stalledMs: 10_000,
  subscriptionsMax: 4_096,
  outbound: { bytes: 0, bytesMax: Infinity },
}
