/**
 * Every limit of the protocol, in one place. Units and bounds are the last words of each name. `limits.test.ts`
 * asserts that the limits fit each other and the layouts.
 */

const KIB = 1024
const MIB = 1024 * KIB

export const LIMITS = {
  /** Maximum size of a frame from a peer that has not authenticated, header included. */
  frameBytesUnauthenticated: 8 * KIB,
  /** Maximum size of a frame, header included, unless the handshake agrees on another size. */
  frameBytesDefault: 4 * MIB,
  frameBytesMin: 64 * KIB,
  frameBytesMax: 16 * MIB,
  /** Maximum size of the msgpack body of a control frame. */
  controlBytesMax: 64 * KIB,
  /** Maximum nesting depth of maps and lists in msgpack, including the outermost one. */
  controlDepthMax: 64,
  /** Maximum size of a message: payload and options, without the 8 bytes of the record header. */
  messageBytesDefault: 1 * MIB,
  messageBytesMax: 15 * MIB,
  /** Maximum size of a batch of several messages. A batch of one message may be larger. */
  batchBytesMax: 1 * MIB,
  /** Size up to which a client packs independent messages into one batch. */
  batchBytesTarget: 64 * KIB,
  /**
   * Size up to which a client packs messages with a `delay` or an `at` into one batch. It is smaller than
   * `batchBytesTarget`, because each message becomes due by itself, and the broker then reads the whole batch.
   */
  batchBytesScheduledTarget: 16 * KIB,
  batchCountMax: 65_535,
  queueNameBytesMax: 255,
  /** With the two characters that precede it in an address, a topic's name fits in the same field as a queue's name. */
  topicBytesMax: 253,
  topicLevelsMax: 32,
  /** Maximum size of the names and values of the headers of one binding. */
  bindingHeadersBytesMax: 4 * KIB,
  clientNameBytesMax: 255,
  credentialBytesMax: 1024,
  keyBytesMax: 255,
  idBytesMax: 255,
  headersMax: 64,
  headersBytesMax: 16 * KIB,
  priorityMax: 31,
  channelMax: 65_535,
  creditMessagesMax: 65_535,
  creditBytesMax: 0xffff_ffff,
  /** Maximum number of items in one SETTLE frame. */
  rangesMax: 16_384,
  /** Maximum length of the text of an ERROR or a GOODBYE, and of the reason of a settle, in bytes. */
  reasonBytesMax: 4 * KIB,
  heartbeatMsMin: 100,
  heartbeatMsDefault: 10_000,
  heartbeatMsMax: 300_000,
  handshakeMsMax: 5_000,
  /** Maximum number of unanswered batches of one producer. This is also the length of its window at the broker. */
  inFlightBatchesDefault: 4_096,
  inFlightBatchesMax: 16_384,
  inFlightBytesDefault: 16 * MIB,
  /** 100 years. */
  delayMsMax: 100 * 365.25 * 24 * 3600 * 1000,
  /** If `at` is in the past by at most this time, the message is due now. */
  atPastMsMax: 60_000,
  /**
   * Largest value of the attempt fields in frames. With unlimited deliveries, a higher number of attempts is sent as
   * this value.
   */
  maxDeliveriesMax: 65_535,
  keyConcurrencyMax: 65_535,
  /** Maximum messages of a rate, and maximum period in milliseconds (30 days). Their product is a safe integer. */
  rateMessagesMax: 1_000_000,
  ratePerMsMax: 30 * 24 * 3600 * 1000,
  dedupMaxIdsMax: 16_000_000,
  processingTimeoutMsMin: 100,
  /** Shortest `expiresMs` of a queue. */
  expiresMsMin: 1_000,
  /** Maximum number of leases that one SUBSCRIBE may claim. */
  claimsMax: 1_024,
  /** Maximums of one atomic step: the acknowledged messages, the batches, and the messages in all batches together. */
  atomicAcksMax: 65_535,
  atomicBatchesMax: 1_024,
  atomicMessagesMax: 65_535,
  /** Maximum number of messages that one PEEK, REDRIVE, DISCARD or REPLAY returns or changes. */
  pageMessagesMax: 1_000,
  /** Maximum number of redrives of one message, unless a redrive is forced. */
  redrivesMax: 10,
  /** Maximum size of the record of a schedule: body and options, without the 8 bytes of the record header. */
  scheduleBytesMax: 16 * KIB,
  cronBytesMax: 255,
  timeZoneBytesMax: 64,
  /** Minimum interval of a schedule. */
  everyMsMin: 1_000,
  /** Maximum number of ticks to come in the answer to SCHEDULES. */
  ticksMax: 100,
} as const

/** Type of the table of limits. */
export type Limits = typeof LIMITS
