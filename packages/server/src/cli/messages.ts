/** Output of messages for `peek` and `dead`: a table, JSON documents, or one message in full. */
import type { MessagePage, PeekedMessage } from '@sluice/client'
import { LIMITS } from '@sluice/protocol'
import { base64, plain, preview, readableFields } from './body.js'
import { countFlag } from './flags.js'
import { failureOf } from './failure.js'
import { notice, print, printJson } from './output.js'
import { list, shortened, table, widthMax, type Column } from './table.js'
import { ahead, rounded } from './units.js'

/** Number of messages that are shown without --limit. */
export const SHOWN_DEFAULT = 20
/** Maximum number of characters that a table shows of a body, and of a key, an id or an error. */
const BODY_CHARACTERS_MAX = 80
const TEXT_CHARACTERS_MAX = 40

/** The part of the matching messages that is shown. */
export interface Part {
  readonly from: number
  readonly limit: number
}

/** @throws UsageError */
export function partOf(from: string | undefined, limit: string | undefined): Part {
  return {
    from: from === undefined ? 0 : countFlag(from, '--from'),
    limit: limit === undefined ? SHOWN_DEFAULT : countFlag(limit, '--limit', 1),
  }
}

type Fetch = (place: { readonly from: number; readonly limit: number }) => Promise<MessagePage>

/** Yields up to `limit` messages, page by page. Returns the offset of the next matching message, if there is one. */
async function* pages(
  fetch: Fetch,
  { from, limit }: Part,
): AsyncGenerator<PeekedMessage[], number | undefined> {
  let left = limit
  for (let place: number | undefined = from; place !== undefined;) {
    // One message more than is shown is requested, because the offset of the next match is needed.
    const page: MessagePage = await fetch({ from: place, limit: Math.min(left + 1, LIMITS.pageMessagesMax) })
    if (page.messages.length > left) {
      yield page.messages.slice(0, left)
      return page.messages[left]!.offset
    }
    left -= page.messages.length
    yield page.messages
    place = page.next
  }
  return undefined
}

/** Prints the messages that `fetch` returns: a table, or with `json` one document for each message. */
export async function printMessages(
  fetch: Fetch,
  part: Part,
  {
    json,
    columns,
    none,
  }: { readonly json: boolean; readonly columns: readonly MessageColumn[]; readonly none: string },
): Promise<void> {
  const found = pages(fetch, part)
  const rows: Row[] = []
  const nowMs = Date.now()
  let step = await found.next()
  for (; step.done !== true; step = await found.next()) {
    if (json)
      await print(step.value.map((message) => `${JSON.stringify(messageDocument(message))}\n`).join(''))
    else rows.push(...step.value.map((message) => rowOf(message, nowMs)))
  }
  if (rows.length > 0) {
    const used = columns
      .map((name) => COLUMNS[name])
      .filter(({ isUsed }) => isUsed === undefined || rows.some(isUsed))
    await print(table(used, rows, widthMax()))
  } else if (!json) notice(none)
  if (step.value !== undefined)
    notice(`There are more: continue with --from ${step.value}, or show more at a time with --limit.`)
}

/** A row of a table. It keeps only the beginning of a body, to limit the memory of a long table. */
interface Row {
  readonly message: Omit<PeekedMessage, 'body'>
  readonly when: string
  readonly body: string
}

function rowOf(message: PeekedMessage, nowMs: number): Row {
  const { offset, id, key, priority, state, reason, error, attempts, holder } = message
  const kept = { offset, id, key, priority, state, reason, error, attempts, holder } as Row['message']
  return { message: kept, when: whenOf(message, nowMs), body: preview(message, BODY_CHARACTERS_MAX) }
}

type MessageColumn =
  | 'offset'
  | 'state'
  | 'when'
  | 'attempts'
  | 'priority'
  | 'key'
  | 'id'
  | 'holder'
  | 'reason'
  | 'error'
  | 'body'

interface MessageColumnEntry extends Column<Row> {
  /** If set, the column is shown only if this function returns true for some row. */
  readonly isUsed?: (row: Row) => boolean
}

function textColumn(title: string, of: (message: Row['message']) => string | undefined): MessageColumnEntry {
  return {
    title,
    value: ({ message }) => shortened(of(message) ?? '-', TEXT_CHARACTERS_MAX),
    isUsed: ({ message }) => of(message) !== undefined,
  }
}

const COLUMNS: Readonly<Record<MessageColumn, MessageColumnEntry>> = {
  offset: { title: 'OFFSET', value: ({ message }) => message.offset },
  state: { title: 'STATE', value: ({ message }) => message.state },
  when: { title: 'WHEN', value: ({ when }) => when },
  attempts: { title: 'ATTEMPTS', value: ({ message }) => message.attempts },
  priority: {
    title: 'PRIORITY',
    value: ({ message }) => message.priority,
    isUsed: ({ message }) => message.priority > 0,
  },
  key: textColumn('KEY', ({ key }) => key),
  id: textColumn('ID', ({ id }) => id),
  holder: textColumn('CONSUMER', ({ holder }) => holder),
  reason: textColumn('REASON', ({ reason }) => reason),
  error: textColumn('ERROR', ({ error }) => error),
  body: { title: 'BODY', value: ({ body }) => body },
}

function whenOf({ readySince, dueAt, leasedAt, diedAt }: PeekedMessage, nowMs: number): string {
  const time = readySince ?? dueAt ?? leasedAt ?? diedAt
  if (time === undefined) return '-'
  const awayMs = time.getTime() - nowMs
  return awayMs > 0 ? `in ${ahead(awayMs)}` : `${rounded(-awayMs)} ago`
}

/** All fields of a message, for the output as JSON. */
function messageDocument(message: PeekedMessage): object {
  const { queue, offset, state, id, key, priority, attempts, totalAttempts, redrives } = message
  const { publishedAt, readySince, dueAt, leasedAt, holder, diedAt, expiresAt } = message
  const { reason, error, headers, origin } = message
  return {
    ...{ queue, offset, state, id, key, priority, attempts, totalAttempts, redrives },
    ...{ publishedAt, readySince, dueAt, leasedAt, holder, diedAt, expiresAt },
    ...{ reason, error, headers, origin },
    ...readableFields(message),
  }
}

/** Prints one message in full, with the body at the end. */
export async function printMessage(message: PeekedMessage, json: boolean): Promise<void> {
  if (json) return printJson(messageDocument(message))
  const { offset, state, reason, error, id, key, priority, attempts, totalAttempts, redrives } = message
  const { publishedAt, readySince, dueAt, leasedAt, holder, diedAt, expiresAt, origin } = message
  const fields: Record<string, string | number | Date | undefined> = {
    ...{ offset, state, reason, error, key, id },
    priority: priority === 0 ? undefined : priority,
    attempts,
    'total attempts': totalAttempts === attempts ? undefined : totalAttempts,
    redrives: redrives === 0 ? undefined : redrives,
    published: publishedAt,
    'ready since': readySince,
    due: dueAt,
    'leased since': leasedAt,
    consumer: holder,
    died: diedAt,
    expires: expiresAt,
    'moved from': origin === undefined ? undefined : `${origin.queue}, offset ${origin.offset ?? 'unknown'}`,
  }
  const entries: [string, string | number][] = []
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined) entries.push([name, value instanceof Date ? value.toISOString() : value])
  }
  for (const [name, value] of Object.entries(message.headers)) entries.push([`header ${name}`, value])
  const [what, text] = bodyText(message)
  entries.push(['body', what])
  await print(`${list(entries)}\n${text}\n`)
}

/** The type of a body, and the whole body as text. */
function bodyText(message: PeekedMessage): [what: string, text: string] {
  let body: unknown
  try {
    ;({ body } = message)
  } catch (error) {
    return ['not readable', failureOf(error).what]
  }
  if (typeof body === 'string') return ['text', body]
  if (body instanceof Uint8Array) return [`${body.length} bytes, as base64`, base64(body)]
  return ['data', JSON.stringify(plain(body), undefined, 2)]
}
