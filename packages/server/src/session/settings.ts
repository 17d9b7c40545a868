/** What a session is configured with: its limits, and what all sessions of a broker share. */
import { LIMITS } from '@sluice/protocol'

export interface SessionSettings {
  readonly serverVersion: string
  readonly frameBytesMax: number
  /** Used unless the client asks for a shorter one. */
  readonly heartbeatMs: number
  readonly handshakeMs: number
  readonly inFlightBatches: number
  readonly inFlightBytes: number
  /** Beyond this many unread bytes a connection gets no deliveries. */
  readonly outboundBytesSoft: number
  /** Beyond this many more, or after `stalledMs` without progress above the soft bound, it is closed. */
  readonly outboundBytesHard: number
  readonly stalledMs: number
  readonly subscriptionsMax: number
  readonly outbound: Outbound
}

/** What all connections that share it have not read: while it is over its bound, each gets only what it reads at once. */
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
