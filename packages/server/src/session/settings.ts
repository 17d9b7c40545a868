/** Settings of a session: its limits, and the count of unread bytes that all sessions share. */
import { LIMITS } from '@sluice/protocol'

export interface SessionSettings {
  readonly serverVersion: string
  readonly frameBytesMax: number
  /** Upper bound; a client can ask for a shorter interval. */
  readonly heartbeatMs: number
  readonly handshakeMs: number
  readonly inFlightBatches: number
  readonly inFlightBytes: number
  /** Above this number of unread bytes a connection gets no deliveries. */
  readonly outboundBytesSoft: number
  /** A connection is closed this far above the soft bound, or after `stalledMs` above it without reading. */
  readonly outboundBytesHard: number
  readonly stalledMs: number
  readonly subscriptionsMax: number
  readonly outbound: Outbound
}

/** Unread bytes of all connections. Above `bytesMax`, each gets its next delivery when it has read the previous one. */
export interface Outbound {
  bytes: number
  readonly bytesMax: number
}

export const SESSION_DEFAULTS: SessionSettings = {
  serverVersion: '',
  frameBytesMax: LIMITS.frameBytesDefault,
  heartbeatMs: LIMITS.heartbeatMsDefault,
  handshakeMs: LIMITS.handshakeMsMax,
  inFlightBatches: LIMITS.inFlightBatchesDefault,
  inFlightBytes: LIMITS.inFlightBytesDefault,
  outboundBytesSoft: 1 << 20,
  outboundBytesHard: 8 << 20,
  stalledMs: 10_000,
  subscriptionsMax: 4_096,
  outbound: { bytes: 0, bytesMax: Infinity },
}
