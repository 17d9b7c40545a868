/**
 * Describes how a failure ends a command: the exit code, one line that states what happened, and one line of advice.
 * The tables have a row for each error code, and for each system error that a user can act on.
 */
import { SluiceError, type Effect, type ErrorCode, type Progress } from '@sluice/protocol'
import { printable } from './output.js'

export const EXIT = {
  ok: 0,
  failure: 1,
  usage: 2,
  notFound: 4,
  denied: 5,
  unreachable: 6,
  /** The log failed while the broker was running, so the broker must not confirm any further message. */
  fatal: 70,
} as const

type Exit = (typeof EXIT)[keyof typeof EXIT]

/** The arguments of the command are wrong. */
export class UsageError extends Error {
  readonly advice: string

  constructor(message: string, advice: string) {
    super(message)
    this.name = 'UsageError'
    this.advice = advice
  }
}

/** A failure for which the command knows better advice than the table. */
export class AdvisedError extends SluiceError {
  readonly advice: string

  constructor(code: ErrorCode, message: string, advice: string) {
    super(code, message)
    this.advice = advice
  }
}

interface Row {
  readonly exit: Exit
  readonly advice: string
}

const DEFECT: Row = {
  exit: EXIT.failure,
  advice: 'Use the same version of client and broker. If you already do, please report this.',
}
const LATER = 'Try again in a moment.'
const ADDRESS =
  'Start a broker with `sluice serve`, or give the address of a running one with --url or SLUICE_URL.'

const BOUNDS: Row = {
  exit: EXIT.usage,
  advice: 'Give a value within these bounds; --help lists the options.',
}

const ROWS: Readonly<Record<ErrorCode, Row>> = {
  PROTOCOL_VERSION: {
    exit: EXIT.failure,
    advice: 'Check that --url has the port of a Sluice broker of the same version.',
  },
  MALFORMED_FRAME: {
    exit: EXIT.unreachable,
    advice: 'Check that --url has the port of a Sluice broker of this version; the default is 7420.',
  },
  FRAME_TOO_LARGE: DEFECT,
  UNKNOWN_OPCODE: DEFECT,
  UNEXPECTED_FRAME: DEFECT,
  AUTH_FAILED: { exit: EXIT.denied, advice: 'Check the credentials that you use for this broker.' },
  HANDSHAKE_TIMEOUT: {
    exit: EXIT.unreachable,
    advice:
      'Check that --url has the port of a Sluice broker; if the broker is busy, allow more time with --timeout.',
  },
  HEARTBEAT_TIMEOUT: {
    exit: EXIT.unreachable,
    advice: 'Try again. If the timeout recurs, the broker or the network is overloaded.',
  },
  SLOW_CONSUMER: { exit: EXIT.failure, advice: 'Read the output faster, or redirect it to a file.' },
  TOO_MANY_CONNECTIONS: {
    exit: EXIT.unreachable,
    advice: 'Close other clients, or start the broker with a higher --max-connections.',
  },
  SHUTTING_DOWN: { exit: EXIT.unreachable, advice: 'Try again when the broker has restarted.' },
  PRODUCER_UNKNOWN: { exit: EXIT.failure, advice: LATER },
  NOT_SUPPORTED: {
    exit: EXIT.usage,
    advice: 'Omit what is not supported, or use a version that supports it.',
  },
  INVALID_ARGUMENT: BOUNDS,
  INVALID_NAME: {
    exit: EXIT.usage,
    advice:
      'Use up to 255 letters, digits and . _ - : / and begin with a letter, a digit or _, for example orders/new. A group is ' +
      'STREAM@GROUP. To publish to a topic, use `sluice topic publish`.',
  },
  QUEUE_NOT_FOUND: {
    exit: EXIT.notFound,
    advice:
      'List queues with `sluice queue list`, or create this one with `sluice queue ensure NAME`; use `sluice stream` or ' +
      '`sluice group` for a stream or a group.',
  },
  QUEUE_CONFLICT: {
    exit: EXIT.failure,
    advice: 'Add --update to change its options, or omit those that differ.',
  },
  QUEUE_DELETED: {
    exit: EXIT.notFound,
    advice: 'If the queue is still needed, create it again with `sluice queue ensure NAME`.',
  },
  TOO_MANY_DEFINITIONS: {
    exit: EXIT.failure,
    advice: 'Delete bindings and schedules that are not needed.',
  },
  DEFINITION_TOO_LARGE: BOUNDS,
  SCHEDULE_NOT_FOUND: {
    exit: EXIT.notFound,
    advice:
      'List schedules with `sluice schedule list`, or create this one with `sluice schedule ensure NAME`.',
  },
  SCHEDULE_CONFLICT: {
    exit: EXIT.failure,
    advice: 'Add --update to change the schedule, or give the settings that it has.',
  },
  INVALID_CRON: {
    exit: EXIT.usage,
    advice:
      'Give five fields (minute, hour, day, month, weekday), or six with seconds first: --cron "0 3 * * *".',
  },
  CRON_NEVER_FIRES: { exit: EXIT.usage, advice: 'Choose days that exist in the months.' },
  UNKNOWN_TIME_ZONE: {
    exit: EXIT.usage,
    advice: 'Give a name such as Europe/Berlin, or omit --time-zone for UTC.',
  },
  INVALID_INTERVAL: BOUNDS,
  INVALID_TOPIC: {
    exit: EXIT.usage,
    advice:
      'Use up to 32 levels of letters, digits and _ - : / separated by dots, for example orders.eu.created.',
  },
  INVALID_PATTERN: {
    exit: EXIT.usage,
    advice:
      'Use levels separated by dots, with * for one level and # for any number, for example orders.*.created.',
  },
  UNROUTABLE: {
    exit: EXIT.notFound,
    advice: 'Bind a queue with `sluice topic bind PATTERN TARGET`, or accept this with --unroutable drop.',
  },
  TOO_MANY_BINDINGS: {
    exit: EXIT.failure,
    advice: 'Remove bindings that are not needed: `sluice topic unbind PATTERN TARGET`.',
  },
  TOO_MANY_TARGETS: {
    exit: EXIT.failure,
    advice: 'Bind fewer queues to the patterns that match: see `sluice topic test NAME`.',
  },
  TOO_MANY_QUEUES: {
    exit: EXIT.failure,
    advice: 'Delete queues that are no longer used: `sluice queue delete NAME`.',
  },
  MESSAGE_TOO_LARGE: {
    exit: EXIT.failure,
    advice: 'Send a smaller message, or start the broker with a higher --max-message-bytes.',
  },
  BATCH_TOO_LARGE: { exit: EXIT.failure, advice: 'Send fewer or smaller messages at a time.' },
  BATCH_MALFORMED: DEFECT,
  BATCH_CORRUPT: {
    exit: EXIT.failure,
    advice: 'Send the batch again. If the error recurs, test the memory and the network of both machines.',
  },
  QUEUE_FULL: {
    exit: EXIT.failure,
    advice: 'Let consumers drain the queue, or raise its limits with `sluice queue edit`.',
  },
  DEDUP_FULL: {
    exit: EXIT.failure,
    advice: 'Wait until ids leave the window, or raise --dedup-max-ids with `sluice queue edit`.',
  },
  OPTION_CONFLICT: { exit: EXIT.usage, advice: 'Omit one of the two options, or give compatible values.' },
  DEAD_LETTER_CYCLE: { exit: EXIT.usage, advice: 'Name a queue whose own dead letters go elsewhere.' },
  OPTION_FIXED: { exit: EXIT.usage, advice: 'Create another queue with this option, and use it instead.' },
  MESSAGE_NOT_FOUND: {
    exit: EXIT.notFound,
    advice:
      'List messages with `sluice peek QUEUE`, or dead ones with `sluice dead list QUEUE`; `sluice stream get NAME` shows ' +
      'the first and the next offset of a stream.',
  },
  MESSAGE_LEASED: { exit: EXIT.failure, advice: 'Wait until its consumer has settled it, then try again.' },
  CONSUMER_NOT_FOUND: {
    exit: EXIT.notFound,
    advice: 'List consumers with `sluice queue consumers QUEUE`.',
  },
  CONSUMER_CLOSED: {
    exit: EXIT.failure,
    advice: 'An operator closed this consumer; ask before you run the command again.',
  },
  TRANSACTION_TOO_LARGE: {
    exit: EXIT.failure,
    advice: 'Put fewer messages and acknowledgements into one atomic step.',
  },
  INVALID_OPTION: BOUNDS,
  INVALID_PRIORITY: BOUNDS,
  INVALID_DELAY: BOUNDS,
  AT_IN_THE_PAST: { exit: EXIT.usage, advice: 'Give a time in the future, or omit the option.' },
  INVALID_TTL: BOUNDS,
  INVALID_KEY: BOUNDS,
  INVALID_ID: BOUNDS,
  INVALID_HEADERS: BOUNDS,
  TOO_MANY_REQUESTS: { exit: EXIT.failure, advice: LATER },
  TOO_MANY_WAITING: { exit: EXIT.failure, advice: LATER },
  EARLIER_REFUSED: { exit: EXIT.failure, advice: LATER },
  WRONG_KIND: {
    exit: EXIT.usage,
    advice:
      'Use the `queue` commands for a queue, the `stream` commands for a stream, and the `group` commands for a group. Publish to ' +
      'the stream of a group, not to the group.',
  },
  OPTION_UNSUPPORTED: {
    exit: EXIT.usage,
    advice: 'Publish without this option, or publish to a queue.',
  },
  KEY_REQUIRED: { exit: EXIT.usage, advice: 'Publish with --key.' },
  UNKNOWN_OUTCOME: {
    exit: EXIT.failure,
    advice: 'Check with `sluice queue get NAME` whether the message has arrived before you send it again.',
  },
  NUMBER_REUSED: DEFECT,
  DISK_LOW: { exit: EXIT.failure, advice: "Free space on the broker's disk; consumers can continue." },
  MEMORY_FULL: {
    exit: EXIT.failure,
    advice: 'Let consumers catch up, or purge queues that are not needed, then try again.',
  },
  LEASE_LOST: { exit: EXIT.failure, advice: 'Nothing is lost: unacknowledged messages are delivered again.' },
  SUBSCRIPTION_NOT_FOUND: DEFECT,
  CHANNEL_IN_USE: DEFECT,
  TOO_MANY_SUBSCRIPTIONS: DEFECT,
  IN_FLIGHT_EXCEEDED: DEFECT,
  CORRUPT: {
    exit: EXIT.failure,
    advice: "Check the broker's disk and its log; other queues are not affected.",
  },
  UNREACHABLE: { exit: EXIT.unreachable, advice: ADDRESS },
  CONNECTION_LOST: {
    exit: EXIT.unreachable,
    advice: 'The command may have taken effect: check with `sluice queue get NAME` before you repeat it.',
  },
  CLOSED: { exit: EXIT.failure, advice: LATER },
  TIMEOUT: {
    exit: EXIT.unreachable,
    advice: 'Allow more time with --timeout, or find out what keeps the broker busy.',
  },
  ABORTED: { exit: EXIT.failure, advice: LATER },
  INVALID_BODY: {
    exit: EXIT.failure,
    advice: 'Correct the input, or choose another --body-type: text, json or bytes.',
  },
  INVALID_URL: { exit: EXIT.usage, advice: 'Write it as sluice://host:port, in --url or SLUICE_URL.' },
  ALREADY_SETTLED: DEFECT,
  OFFLINE: DEFECT,
  REQUEST_TIMEOUT: {
    exit: EXIT.failure,
    advice: 'Check that a consumer of the queue replies, or allow more time with --timeout.',
  },
  REQUEST_FAILED: { exit: EXIT.failure, advice: 'See the dead letters of the queue for the request.' },
  NOT_A_REQUEST: DEFECT,
  ALREADY_REPLIED: DEFECT,
  DATA_DIR_LOCKED: {
    exit: EXIT.failure,
    advice: 'Stop that broker, or choose another directory with --data-dir.',
  },
  READ_FAILED: {
    exit: EXIT.failure,
    advice: "Try again; the broker's log shows what it could not read.",
  },
  LOG_CORRUPT: {
    exit: EXIT.failure,
    advice:
      'Nothing was changed. Keep a copy of the data directory, check the disk, and restore a backup or start with a new --data-dir.',
  },
  LOG_FAILED: {
    exit: EXIT.fatal,
    advice:
      'Nothing that was confirmed is lost. Check the disk and its file system, then start the broker again.',
  },
}

const SYSTEM_ROWS: Readonly<Record<string, Row>> = {
  EADDRINUSE: {
    exit: EXIT.failure,
    advice: 'Stop the process that uses this port, or choose another with --port; 0 takes any free port.',
  },
  EADDRNOTAVAIL: {
    exit: EXIT.failure,
    advice: 'Use an address that this machine has, such as --host 127.0.0.1.',
  },
  ENOTFOUND: {
    exit: EXIT.failure,
    advice: 'Use an address that this machine has, such as --host 127.0.0.1.',
  },
  EACCES: { exit: EXIT.failure, advice: 'Use a file, directory or port that you have permission for.' },
  EPERM: { exit: EXIT.failure, advice: 'Use a file, directory or port that you have permission for.' },
  EROFS: { exit: EXIT.failure, advice: 'Use a directory on a writable file system.' },
  ENOSPC: { exit: EXIT.failure, advice: 'Free space on that disk.' },
  ENOENT: { exit: EXIT.failure, advice: 'Check the path.' },
  ENOTDIR: { exit: EXIT.failure, advice: 'Check the path: part of it is a file.' },
  EEXIST: { exit: EXIT.failure, advice: 'Check the path: a file already exists there.' },
  EISDIR: { exit: EXIT.failure, advice: 'Check the path: it is a directory.' },
  ENAMETOOLONG: { exit: EXIT.failure, advice: 'Choose a shorter path.' },
  ELOOP: { exit: EXIT.failure, advice: 'Check the path: its symbolic links form a loop.' },
  EDQUOT: { exit: EXIT.failure, advice: 'Free space, or raise the quota.' },
  ENFILE: { exit: EXIT.failure, advice: 'The machine has too many open files: close some.' },
  EMFILE: { exit: EXIT.failure, advice: 'Allow more open files: `ulimit -n`.' },
  EIO: { exit: EXIT.failure, advice: 'Check the disk.' },
}

export interface Failure {
  readonly exit: number
  readonly code: string
  /** Description of the failure, on one line. */
  readonly what: string
  /** Advice to the user, on one line. */
  readonly advice: string
  /** Set if the command had, or may have had, an effect before it failed. */
  readonly outcome?: Effect | undefined
  readonly progress?: Progress | undefined
}

/** Converts a thrown value to a failure. */
export function failureOf(error: unknown): Failure {
  const what = printable(error instanceof Error ? error.message : String(error))
  if (error instanceof UsageError) {
    return { exit: EXIT.usage, code: 'USAGE', what, advice: printable(error.advice) }
  }
  if (error instanceof SluiceError) {
    const { code, outcome, progress } = error
    const row = ROWS[code]
    const known = error instanceof AdvisedError ? error.advice : row.advice
    const advice = progress === undefined ? known : `${known} ${continueText(progress)}`
    return { ...row, advice: printable(advice), code, what, outcome, progress }
  }
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined
  const row = code === undefined ? undefined : SYSTEM_ROWS[code]
  if (code !== undefined && row !== undefined) return { ...row, code, what: systemText(error as Error, what) }
  return {
    exit: EXIT.failure,
    code: code ?? 'UNEXPECTED',
    what: `${error instanceof Error ? error.name : 'Error'}: ${what}`,
    advice: 'Unexpected error. Please report it, including the command you ran.',
  }
}

// Returns a sentence on how to continue. Redriven and deleted messages no longer match, so the command can be repeated.
// A replay would publish its messages again, so it needs a cursor.
function continueText({ cursor }: Progress): string {
  return cursor === undefined ? 'Run the same command again: it continues with the rest.' : cursorText(cursor)
}

/** Returns a sentence on how to continue a replay that ended early. */
export function cursorText(cursor: string): string {
  return `To continue where this command ended, run it again with --cursor ${cursor}`
}

// Turns a system error, such as "listen EADDRINUSE: address already in use 127.0.0.1:7420", into a sentence.
function systemText(error: NodeJS.ErrnoException, what: string): string {
  const match = /^(?:\w+ )?E[A-Z]+: ([^,]+)(?:, (.*))?$/.exec(what)
  const { address, port } = error as { address?: string; port?: number }
  if (error.syscall === 'listen' && match !== null) {
    return `The broker cannot listen on ${address}${port === undefined ? '' : `:${port}`}: ${REASONS[error.code ?? ''] ?? match[1]}.`
  }
  return match === null ? what : `${capital(match[1]!)}${match[2] === undefined ? '' : `: ${match[2]}`}.`
}

const REASONS: Readonly<Record<string, string>> = {
  EADDRINUSE: 'the port is in use',
  EADDRNOTAVAIL: 'this machine does not have the address',
  EACCES: 'permission denied',
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}

/** The text for stderr: two lines, or one JSON document with --json. */
export function failureText({ code, what, advice, outcome, progress }: Failure, json: boolean): string {
  if (json) return `${JSON.stringify({ error: { code, message: what, advice, outcome, progress } })}\n`
  return `error: ${what}\n hint: ${advice}\n`
}
