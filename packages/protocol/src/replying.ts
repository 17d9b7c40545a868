/**
 * Replies to requests: MAILBOX, REPLY, REPLIED and ANSWER, and the header that makes a message a request.
 *
 * A mailbox is the address of a client for replies: sixteen random bytes, which the client presents with MAILBOX on each of
 * its connections. A request is a message with the header `REPLY_TO_HEADER`, which names the mailbox and the number of the
 * request. The header is an ordinary header, so that records without one are read as before, and moves and copies keep it.
 */
import { copyBytes, readU32, textBytes, viewBytes, writeU32 } from './bytes.js'
import { SluiceError } from './errors.js'
import { exact } from './handshake.js'
import { LIMITS } from './limits.js'
import {
  CONTENT_TYPE,
  RECORD_FLAG,
  checkRecords,
  recordBytes,
  recordFlags,
  recordPriority,
  writeRecordHead,
} from './record.js'

export const MAILBOX_BYTES = 16
export const REPLY_TO_HEADER = 'sluice-reply-to'

/** What a reply says: the answer to the request, or why the request has failed. The body of a failure is text. */
export const REPLY_KIND = { answer: 0, failure: 1 } as const
export type ReplyKind = (typeof REPLY_KIND)[keyof typeof REPLY_KIND]

/**
 * What became of a reply: sent to the client of the mailbox; kept until this client reads or reconnects; dropped, because too
 * much is kept for it; or no client has the mailbox.
 */
export const REPLY_FATE = { delivered: 0, kept: 1, dropped: 2, gone: 3 } as const
export type ReplyFate = (typeof REPLY_FATE)[keyof typeof REPLY_FATE]

/** Where the reply to a request goes. */
export interface ReplyTo {
  /** The mailbox as 32 hexadecimal digits. */
  readonly mailbox: string
  readonly request: number
}

/** Size of the request number and the kind, with which a reply begins in REPLY and ANSWER. */
const REPLY_HEAD_BYTES = 4 + 1

export function replyToValue({ mailbox, request }: ReplyTo): string {
  return `${mailbox}/${request}`
}

/** Reads the value of `REPLY_TO_HEADER`; undefined if no reply can be sent to it. */
export function parseReplyTo(value: string | undefined): ReplyTo | undefined {
  const match = value === undefined ? null : /^([0-9a-f]{32})\/(0|[1-9][0-9]{0,9})$/.exec(value)
  if (match === null) return undefined
  const request = Number(match[2])
  return request > 0xffff_ffff ? undefined : { mailbox: match[1]!, request }
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeMailbox(bytes: Uint8Array, start: number, end: number): string {
  exact('MAILBOX', end - start, MAILBOX_BYTES)
  return hexOf(bytes, start)
}

export function encodeMailbox(mailbox: string): Uint8Array {
  const bytes = new Uint8Array(MAILBOX_BYTES)
  writeHex(bytes, mailbox)
  return bytes
}

/** The payload of REPLY. `record` is a record that has at most headers as options. */
export function encodeReply({ mailbox, request }: ReplyTo, kind: ReplyKind, record: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(MAILBOX_BYTES + REPLY_HEAD_BYTES + record.length)
  writeHex(bytes, mailbox)
  writeU32(bytes, MAILBOX_BYTES, request)
  bytes[MAILBOX_BYTES + 4] = kind
  bytes.set(record, MAILBOX_BYTES + REPLY_HEAD_BYTES)
  return bytes
}

/** The record of a failure. */
export function failureRecord(reason: string): Uint8Array {
  const length = textBytes(reason)
  const bytes = new Uint8Array(recordBytes(undefined, length))
  bytes.set(new TextEncoder().encode(reason), writeRecordHead(bytes, 0, undefined, CONTENT_TYPE.text, length))
  return bytes
}

export interface Reply {
  readonly mailbox: string
  /** Position of the payload of ANSWER within the payload of REPLY. */
  readonly answerAt: number
}

/** @throws SluiceError MALFORMED_FRAME, MESSAGE_TOO_LARGE */
export function decodeReply(bytes: Uint8Array, start: number, end: number, messageBytesMax: number): Reply {
  const answerAt = start + MAILBOX_BYTES
  if (end - start < MAILBOX_BYTES) throw malformed('REPLY', `has ${end - start} bytes`)
  checkAnswer('REPLY', bytes, answerAt, end, messageBytesMax)
  return { mailbox: hexOf(bytes, start), answerAt }
}

export interface Answer {
  readonly request: number
  readonly kind: number
  readonly record: Uint8Array
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeAnswer(bytes: Uint8Array, start: number, end: number): Answer {
  checkAnswer('ANSWER', bytes, start, end, LIMITS.messageBytesMax)
  const record = copyBytes(bytes, start + REPLY_HEAD_BYTES, end)
  return { request: readU32(bytes, start), kind: bytes[start + 4]!, record }
}

export function encodeReplied(fate: ReplyFate): Uint8Array {
  return Uint8Array.of(fate)
}

/** @throws SluiceError MALFORMED_FRAME */
export function decodeReplied(bytes: Uint8Array, start: number, end: number): ReplyFate {
  exact('REPLIED', end - start, 1)
  const fate = bytes[start]!
  if (fate > REPLY_FATE.gone) throw malformed('REPLIED', `has the fate ${fate}`)
  return fate as ReplyFate
}

function checkAnswer(
  frame: string,
  bytes: Uint8Array,
  start: number,
  end: number,
  messageBytesMax: number,
): void {
  const recordAt = start + REPLY_HEAD_BYTES
  if (end < recordAt) throw malformed(frame, `has ${end - start} bytes for a reply`)
  const kind = bytes[start + 4]!
  if (kind > REPLY_KIND.failure) throw malformed(frame, `has a reply of the kind ${kind}`)
  const found = checkRecords(bytes, recordAt, end, 1, messageBytesMax)
  if (typeof found !== 'number') {
    if (found.code === 'MESSAGE_TOO_LARGE') {
      const length = end - recordAt
      throw new SluiceError(
        'MESSAGE_TOO_LARGE',
        `A reply has ${length} bytes; at most ${messageBytesMax} are accepted.`,
      )
    }
    throw malformed(frame, `has a malformed record. ${found.message}`)
  }
  if (recordFlags(bytes, recordAt) & ~RECORD_FLAG.headers || recordPriority(bytes, recordAt) !== 0)
    throw malformed(frame, 'has a record with other options than headers')
}

function hexOf(bytes: Uint8Array, at: number): string {
  let text = ''
  for (const byte of viewBytes(bytes, at, at + MAILBOX_BYTES)) text += HEX[byte]
  return text
}

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'))

function writeHex(bytes: Uint8Array, mailbox: string): void {
  for (let index = 0; index < MAILBOX_BYTES; index++)
    bytes[index] = digit(mailbox, index * 2) * 16 + digit(mailbox, index * 2 + 1)
}

// The value of a hexadecimal digit in lower case.
function digit(text: string, at: number): number {
  const code = text.charCodeAt(at)
  return code < 0x3a ? code - 0x30 : code - 0x57
}

function malformed(frame: string, what: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `${frame} ${what}.`)
}
