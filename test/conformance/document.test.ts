import { readFileSync } from 'node:fs'
import {
  BATCH_ATTRIBUTE,
  BATCH_TYPE,
  CONTENT_TYPE,
  DEATH,
  DELIVER_FLAG,
  DURABILITY,
  ERRORS,
  FEATURES,
  GOODBYE_REASON,
  EXPLAIN_CODES,
  HISTORY_EVENTS,
  LIMITS,
  LOSS,
  MECHANISM,
  MESSAGE_OVERHEAD_BYTES,
  MESSAGE_STATE,
  OPCODES,
  ORIGIN_HEADERS,
  OUTCOME,
  QUEUE_COUNTERS,
  QUEUE_OPTIONS,
  STREAM_OPTIONS,
  RECORD_FLAG,
  REPLY_FATE,
  REPLY_KIND,
} from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { consumer, queueInfo } from './cases.js'
import { VECTORS, fromHex } from './vectors.js'

const DOCUMENT = readFileSync(new URL('../../docs/PROTOCOL.md', import.meta.url), 'utf8')

/** The rows of the table under the heading `### title`, as objects by column name. */
function table(title: string): Record<string, string>[] {
  const section = DOCUMENT.split(`\n### ${title}\n`)[1]?.split(/\n##+ /)[0]
  if (section === undefined) throw new Error(`PROTOCOL.md has no section ${title}`)
  const lines = section.split('\n').filter((line) => line.startsWith('|'))
  const [head, , ...rows] = lines.map((line) =>
    line
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim()),
  )
  return rows.map((cells) => {
    expect(cells, `a row of ${title}`).toHaveLength(head!.length)
    return Object.fromEntries(cells.map((cell, column) => [head![column]!, cell]))
  })
}

/** `table` as an object that maps the name of each row to what `value` returns for the row. */
function byName<Value>(title: string, value: (row: Record<string, string>) => Value): Record<string, Value> {
  const rows = table(title)
  const named = Object.fromEntries(rows.map((row) => [row['name']!, value(row)]))
  expect(Object.keys(named), `${title} has a name twice`).toHaveLength(rows.length)
  return named
}

function number(cell: string | undefined): number {
  expect(cell).toMatch(/^\d+$/)
  return Number(cell)
}

describe('the tables of PROTOCOL.md are the registries of the code', () => {
  test('opcodes', () => {
    const written = byName('Opcodes', ({ opcode, sender, stage, layout }) => ({
      code: number(opcode),
      sender,
      stage,
      layout,
    }))
    expect(written).toStrictEqual(OPCODES)
    expect(Object.keys(written).length).toBeGreaterThanOrEqual(42)
  })

  test('error codes', () => {
    const written = byName('Error codes', (row) => ({
      number: number(row['number']),
      scope: row['scope'],
      retryable: { yes: true, no: false }[row['retryable']!],
      meaning: row['meaning'],
    }))
    expect(written).toStrictEqual(ERRORS)
    expect(Object.keys(written).length).toBeGreaterThanOrEqual(62)
  })

  test('limits', () => {
    const written = byName('Limits', ({ value }) => number(value))
    expect(written).toStrictEqual(LIMITS)
    expect(Object.keys(written).length).toBeGreaterThanOrEqual(42)
    expect(DOCUMENT).toContain(`room for ${MESSAGE_OVERHEAD_BYTES} bytes more than the largest message`)
  })

  test.each([
    ['Queue options', QUEUE_OPTIONS, 17],
    ['Stream options', STREAM_OPTIONS, 5],
  ])('%s', (title, registry, count) => {
    const written = byName(title, ({ kind, default: value, values, meaning }) => {
      const option = { kind, default: JSON.parse(value!) as unknown, meaning }
      if (kind === 'number') {
        const [, zero, least, max, word] = /^(?:(0), or )?(\d+) to (\d+)(?:, or (\w+))?$/.exec(values!)!
        const from = zero === undefined ? { min: number(least) } : { min: 0, least: number(least) }
        return { ...option, ...from, max: number(max), ...(word === undefined ? {} : { word }) }
      }
      if (kind === 'choice') return { ...option, choices: values!.split(', ') }
      expect(values).toBe(kind === 'flag' ? 'false, true' : 'a queue, or empty')
      return option
    })
    expect(written).toStrictEqual(registry)
    expect(Object.keys(written)).toStrictEqual(Object.keys(registry))
    expect(Object.keys(written).length).toBeGreaterThanOrEqual(count)
  })

  test.each([
    ['Queue counters', QUEUE_COUNTERS, 'meaning', 10],
    ['Origin headers', ORIGIN_HEADERS, 'header', 8],
    ['History events', HISTORY_EVENTS, 'meaning', 16],
    ['Reasons of EXPLAIN', EXPLAIN_CODES, 'meaning', 28],
  ] as const)('%s', (title, registry, column, count) => {
    expect(byName(title, (row) => row[column])).toStrictEqual(registry)
    expect(table(title)).toHaveLength(count)
  })

  // The compiler checks that `queueInfo` and `consumer` have the fields of their types; the golden vectors check their
  // bytes.
  test('fields of a queue and of a consumer', () => {
    const names = (title: string): string[] => table(title).map(({ name }) => name!)
    expect([...names('Fields of a queue'), ...names('Queue counters')]).toStrictEqual(Object.keys(queueInfo))
    expect(names('Fields of a consumer')).toStrictEqual(Object.keys(consumer))
    expect(Object.keys(queueInfo.options)).toStrictEqual(Object.keys(QUEUE_OPTIONS))
  })

  test.each([
    ['Content types', CONTENT_TYPE, 3],
    ['Record flags', RECORD_FLAG, 6],
    ['Batch types', BATCH_TYPE, 6],
    ['Batch attributes', BATCH_ATTRIBUTE, 4],
    ['Delivery flags', DELIVER_FLAG, 3],
    ['Outcomes', OUTCOME, 4],
    ['Losses', LOSS, 4],
    ['Kinds of replies', REPLY_KIND, 2],
    ['Fates of replies', REPLY_FATE, 4],
    ['Message states', MESSAGE_STATE, 4],
    ['Deaths', DEATH, 4],
    ['Durability', DURABILITY, 2],
    ['Mechanisms', MECHANISM, 1],
    ['Goodbye reasons', GOODBYE_REASON, 3],
  ] as const)('%s', (title, registry, count) => {
    expect(byName(title, ({ value }) => number(value))).toStrictEqual(registry)
    expect(table(title).length).toBeGreaterThanOrEqual(count)
  })

  test('no feature bit is defined', () => {
    expect(FEATURES).toStrictEqual({})
    expect(DOCUMENT).toMatch(/Version\s+1 defines none/)
  })

  test('each table is compared by one of these tests, except the table of the credit flags, which are bits of one frame', () => {
    const tables = DOCUMENT.split('\n## Tables\n')[1]!.split('\n## ')[0]!
    expect([...tables.matchAll(/^### (.*)$/gm)].map(([, title]) => title)).toStrictEqual([
      'Opcodes',
      'Error codes',
      'Limits',
      'Queue options',
      'Stream options',
      'Queue counters',
      'Message states',
      'Deaths',
      'Origin headers',
      'History events',
      'Reasons of EXPLAIN',
      'Content types',
      'Record flags',
      'Batch types',
      'Batch attributes',
      'Credit flags',
      'Delivery flags',
      'Outcomes',
      'Losses',
      'Kinds of replies',
      'Fates of replies',
      'Durability',
      'Mechanisms',
      'Goodbye reasons',
    ])
  })

  test('every name in capitals that the text uses is an opcode or an error code', () => {
    const known = new Set([...Object.keys(OPCODES), ...Object.keys(ERRORS)])
    const used = [...DOCUMENT.matchAll(/`([A-Z][A-Z_]{3,})`/g)].map(([, name]) => name!)
    expect(used.filter((name) => !known.has(name))).toStrictEqual([])
    expect(used.length).toBeGreaterThan(30)
  })
})

describe('the example of PROTOCOL.md', () => {
  const steps = [...DOCUMENT.matchAll(/^`([<>])` (.+)\n\n```hex\n([^`]*)```$/gm)].map(
    ([, side, name, lines]) => ({
      side,
      name: name!,
      // The text to the right of the bytes starts after two spaces, or at column 50.
      bytes: fromHex(
        lines!
          .trim()
          .split('\n')
          .map((line) => line.slice(0, 49).trim())
          .join(' '),
      ),
    }),
  )

  test('has the frames of a whole conversation, in order', () => {
    expect(steps.map(({ side, name }) => `${side} ${name}`)).toStrictEqual([
      '> preface',
      '> HELLO',
      '> AUTH',
      '< preface',
      '< HELLO_OK',
      '> ENSURE',
      '< RESULT of ENSURE',
      '> PUBLISH',
      '< PUBLISH_OK',
      '> SUBSCRIBE',
      '< SUBSCRIBE_OK',
      '< DELIVER',
      '> STARTED',
      '> SETTLE',
      '< SETTLE_OK',
      '> GOODBYE',
      '> ATOMIC',
      '< ATOMIC_OK',
    ])
  })

  test.each(steps)('$side $name has the bytes of the golden vector', ({ name, bytes }) => {
    expect(bytes).toStrictEqual(VECTORS.find((vector) => vector.name === name)!.bytes)
  })
})
