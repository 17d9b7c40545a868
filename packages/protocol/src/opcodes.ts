/**
 * The only table of frame kinds: the number, which side may send the frame, at which stage, and the layout of its payload.
 * Numbers are never reused.
 */

/** `both`: either side may send the frame. */
export type Sender = 'client' | 'server' | 'both'
/** `handshake`: before HELLO_OK; `open`: after HELLO_OK; `any`: at both stages. */
export type Stage = 'handshake' | 'open' | 'any'
export type Layout = 'fixed' | 'msgpack' | 'empty'

export interface Opcode {
  readonly code: number
  readonly sender: Sender
  readonly stage: Stage
  readonly layout: Layout
}

export const OPCODES = {
  HELLO: { code: 1, sender: 'client', stage: 'handshake', layout: 'fixed' },
  HELLO_OK: { code: 2, sender: 'server', stage: 'handshake', layout: 'fixed' },
  AUTH: { code: 3, sender: 'client', stage: 'handshake', layout: 'fixed' },
  PING: { code: 4, sender: 'both', stage: 'open', layout: 'empty' },
  PONG: { code: 5, sender: 'both', stage: 'open', layout: 'empty' },
  GOODBYE: { code: 6, sender: 'both', stage: 'open', layout: 'fixed' },
  ERROR: { code: 7, sender: 'server', stage: 'any', layout: 'fixed' },
  // The number 8 is not used. It was NOTICE, a frame that no broker sent.

  PUBLISH: { code: 16, sender: 'client', stage: 'open', layout: 'fixed' },
  PUBLISH_OK: { code: 17, sender: 'server', stage: 'open', layout: 'fixed' },
  PUBLISH_ERR: { code: 18, sender: 'server', stage: 'open', layout: 'fixed' },
  ATOMIC: { code: 19, sender: 'client', stage: 'open', layout: 'fixed' },
  ATOMIC_OK: { code: 20, sender: 'server', stage: 'open', layout: 'fixed' },

  SUBSCRIBE: { code: 32, sender: 'client', stage: 'open', layout: 'msgpack' },
  SUBSCRIBE_OK: { code: 33, sender: 'server', stage: 'open', layout: 'fixed' },
  CREDIT: { code: 34, sender: 'client', stage: 'open', layout: 'fixed' },
  DELIVER: { code: 35, sender: 'server', stage: 'open', layout: 'fixed' },
  STARTED: { code: 36, sender: 'client', stage: 'open', layout: 'fixed' },
  SETTLE: { code: 37, sender: 'client', stage: 'open', layout: 'fixed' },
  SETTLE_OK: { code: 38, sender: 'server', stage: 'open', layout: 'fixed' },
  EXTEND: { code: 39, sender: 'client', stage: 'open', layout: 'fixed' },
  UNSUBSCRIBE: { code: 40, sender: 'client', stage: 'open', layout: 'fixed' },
  DRAINED: { code: 41, sender: 'server', stage: 'open', layout: 'fixed' },
  LEASES_LOST: { code: 42, sender: 'server', stage: 'open', layout: 'fixed' },
  STARTING: { code: 43, sender: 'client', stage: 'open', layout: 'fixed' },

  ENSURE: { code: 64, sender: 'client', stage: 'open', layout: 'msgpack' },
  GET: { code: 65, sender: 'client', stage: 'open', layout: 'msgpack' },
  LIST: { code: 66, sender: 'client', stage: 'open', layout: 'msgpack' },
  DELETE: { code: 67, sender: 'client', stage: 'open', layout: 'msgpack' },
  PURGE: { code: 68, sender: 'client', stage: 'open', layout: 'msgpack' },
  PAUSE: { code: 69, sender: 'client', stage: 'open', layout: 'msgpack' },
  RESUME: { code: 70, sender: 'client', stage: 'open', layout: 'msgpack' },
  PEEK: { code: 71, sender: 'client', stage: 'open', layout: 'msgpack' },
  REDRIVE: { code: 72, sender: 'client', stage: 'open', layout: 'msgpack' },
  CANCEL: { code: 73, sender: 'client', stage: 'open', layout: 'msgpack' },
  RESCHEDULE: { code: 74, sender: 'client', stage: 'open', layout: 'msgpack' },
  REPLAY: { code: 75, sender: 'client', stage: 'open', layout: 'msgpack' },
  HISTORY: { code: 76, sender: 'client', stage: 'open', layout: 'msgpack' },
  CONSUMERS: { code: 77, sender: 'client', stage: 'open', layout: 'msgpack' },
  CLOSE_CONSUMER: { code: 78, sender: 'client', stage: 'open', layout: 'msgpack' },
  RESULT: { code: 79, sender: 'server', stage: 'open', layout: 'msgpack' },
  DISCARD: { code: 80, sender: 'client', stage: 'open', layout: 'msgpack' },
  MESSAGES: { code: 81, sender: 'server', stage: 'open', layout: 'fixed' },
  READ: { code: 82, sender: 'client', stage: 'open', layout: 'msgpack' },
  READ_OK: { code: 83, sender: 'server', stage: 'open', layout: 'fixed' },
  READ_AT: { code: 100, sender: 'server', stage: 'open', layout: 'fixed' },

  BIND: { code: 84, sender: 'client', stage: 'open', layout: 'msgpack' },
  UNBIND: { code: 85, sender: 'client', stage: 'open', layout: 'msgpack' },
  BINDINGS: { code: 86, sender: 'client', stage: 'open', layout: 'msgpack' },
  ROUTES: { code: 87, sender: 'client', stage: 'open', layout: 'msgpack' },
  MOVE: { code: 88, sender: 'client', stage: 'open', layout: 'msgpack' },
  EXPLAIN: { code: 89, sender: 'client', stage: 'open', layout: 'msgpack' },

  SCHEDULE: { code: 90, sender: 'client', stage: 'open', layout: 'msgpack' },
  SCHEDULES: { code: 91, sender: 'client', stage: 'open', layout: 'msgpack' },
  UNSCHEDULE: { code: 92, sender: 'client', stage: 'open', layout: 'msgpack' },
  RUN_SCHEDULE: { code: 93, sender: 'client', stage: 'open', layout: 'msgpack' },

  REPLY: { code: 94, sender: 'client', stage: 'open', layout: 'fixed' },
  REPLIED: { code: 95, sender: 'server', stage: 'open', layout: 'fixed' },
  MAILBOX: { code: 96, sender: 'client', stage: 'open', layout: 'fixed' },
  ANSWER: { code: 97, sender: 'server', stage: 'open', layout: 'fixed' },
} as const satisfies Record<string, Opcode>

export type OpcodeName = keyof typeof OPCODES

/** Number of each frame kind: `OP.PUBLISH === 16`. */
export const OP = Object.fromEntries(Object.entries(OPCODES).map(([name, { code }]) => [name, code])) as {
  readonly [Name in OpcodeName]: (typeof OPCODES)[Name]['code']
}

/** Name of the frame kind with this number, or undefined. */
export function opcodeName(code: number): OpcodeName | undefined {
  return NAMES[code]
}

const NAMES: (OpcodeName | undefined)[] = []
for (const [name, { code }] of Object.entries(OPCODES)) {
  if (NAMES[code] !== undefined) throw new Error(`opcode ${code} is defined twice`)
  NAMES[code] = name as OpcodeName
}
