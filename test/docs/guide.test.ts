/**
 * The guide agrees with the product: its programs compile, run against a broker and print the stated output; its tables
 * of options equal the tables of the code; its error codes exist; its links have targets.
 */
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { parseDuration, type ConnectOptions } from '@sluice/client'
import { ERRORS, LIMITS, QUEUE_OPTIONS, type QueueOptionName } from '@sluice/protocol'
import { startServer, type RunningServer } from '@sluice/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { connectSettings } from '../../packages/client/src/options.js'
import { guideDirectory, readPages, readReadme, type Page, type Table } from './pages.js'
import { compilePrograms, enterPrograms, helpOf, printedAt, runProgram, writePrograms } from './programs.js'
import { scratchDirectory } from '../rig/scratch.js'

const pages = readPages()
/** Pages that do not describe a single behaviour of a queue. */
const REFERENCE = ['README', 'errors', 'testing']
const behaviours = pages.filter(({ name }) => !REFERENCE.includes(name) && !name.startsWith('from-'))

/** Tables whose first column lists options of the client: the heading of the column, and the type of the options. */
const OPTION_TYPES: Readonly<Record<string, string>> = {
  'publish option': 'PublishOptions',
  'publishAll option': 'PublishAllOptions',
  'consume option': 'ConsumeOptions',
  'batch option': 'BatchConsumeOptions',
  'messages option': 'MessagesOptions',
  'pull option': 'PullOptions',
  'read option': 'ReadOptions',
  'group option': 'EnsureGroupOptions',
  'connect option': 'ConnectOptions',
  event: 'SluiceEvents',
  'peek option': 'PeekOptions',
  'redrive option': 'RedriveOptions',
  'replay option': 'ReplayOptions',
  'retry option': 'RetryOptions',
}

describe('the programs of the guide', () => {
  let scratch: Awaited<ReturnType<typeof scratchDirectory>>
  let server: RunningServer
  let leavePrograms: () => void

  beforeAll(async () => {
    scratch = await scratchDirectory('guide')
    server = await startServer({ port: 0, dataDir: scratch.path, segmentBytes: 8 << 20, lowFreeBytes: 0 })
    process.env['SLUICE_URL'] = `sluice://127.0.0.1:${server.port}`
    await writePrograms(pages, optionTypes(), missingTypes())
    leavePrograms = enterPrograms()
  })

  afterAll(async () => {
    leavePrograms()
    delete process.env['SLUICE_URL']
    await server.stop()
    await scratch.dispose()
  })

  it('compile', async () => {
    expect(await compilePrograms()).toBe('')
    expect(optionTypes().length).toBeGreaterThan(30)
    expect(readReadme()).toContain('sluice.consume(')
  })

  describe.concurrent('run', () => {
    it.each(pages.filter(({ blocks }) => blocks.length > 0))(
      '$name',
      async (page) => {
        await runProgram(page)
        for (const { line, texts } of page.prints)
          expect(printedAt(page, line), `${page.file}:${line}`).toEqual(texts)
      },
      60_000,
    )
  })
})

function optionTypes(): string[] {
  return pages.flatMap((page) =>
    namedOptions([page]).map(([type, path]) => `${type}['${path.join("']['")}']`),
  )
}

/** Types that must be `never`: for each options type of the client, the options that no table of these pages lists. */
function missingTypes(): string[] {
  // The options of a batch handler are those of `consume` plus `batch`.
  const types = new Set(Object.values(OPTION_TYPES))
  types.delete('BatchConsumeOptions')
  const connecting = pages.filter(({ name }) => name === 'connecting')
  return [
    ...[...types].map((type) => missingType(type, pages)),
    // One page has all options of these types in one table.
    missingType('ConnectOptions', connecting),
  ]
}

function missingType(type: string, among: readonly Page[]): string {
  const names = namedOptions(among).flatMap(([of, [name]]) => (of === type ? [`'${name}'`] : []))
  // `batch` is documented in the table of batch options.
  if (type === 'ConsumeOptions') names.push("'batch'")
  return `Exclude<keyof sluice.${type}, ${names.join(' | ')}>`
}

function namedOptions(among: readonly Page[]): [type: string, path: string[]][] {
  return among.flatMap(({ tables }) =>
    tables.flatMap(({ header, rows }) => {
      const type = OPTION_TYPES[header[0]!]
      if (type === undefined) return []
      return rows.flatMap(([cell]) =>
        cell!.split(', ').map((name): [string, string[]] => [type, unquoted(name).split('.')]),
      )
    }),
  )
}

it('starts each page with its subject, and an example of at most 15 lines', () => {
  for (const { file, text, blocks } of behaviours) {
    expect(text, file).toMatch(/^# .+\n\n[A-Z`]/)
    const first = blocks.find(({ isHidden }) => !isHidden)
    expect(first?.lines, file).toBeLessThanOrEqual(15)
    for (const heading of ['## Options', '## Together with', '## Limits', '## Errors', '## From the shell'])
      expect(text, `${file} has ${heading}`).toContain(`\n${heading}`)
  }
  expect(behaviours.length).toBeGreaterThanOrEqual(16)
})

it('runs nearly all of its code, and gives the reason for each block that is not run', () => {
  const blocks = pages.flatMap((page) => page.blocks)
  const idle = blocks.filter(({ noRun }) => noRun !== undefined)
  for (const { noRun } of idle) expect(noRun!.length).toBeGreaterThan(10)
  expect(blocks.length - idle.length).toBeGreaterThanOrEqual(60)
  expect(idle.length).toBeLessThanOrEqual(6)
  expect(pages.flatMap((page) => page.prints).length).toBeGreaterThanOrEqual(60)
})

it('lists the options of queues with their names, defaults and bounds', () => {
  const told = new Set<QueueOptionName>()
  let checked = 0
  for (const { file, tables } of pages) {
    for (const { line, header, rows } of tables.filter(({ header }) => header[0] === 'queue option')) {
      expect(header.slice(0, 3), `${file}:${line}`).toEqual(['queue option', 'default', 'bounds'])
      for (const [name, value, bounds] of rows) {
        const option = optionNamed(unquoted(name!))
        expect(option, `${file}:${line}: ${name}`).toBeDefined()
        expect(valueOf(option!, unquoted(value!)), `${file}:${line}: ${name}`).toBe(
          QUEUE_OPTIONS[option!].default,
        )
        expect(bounds, `${file}:${line}: ${name}`).toBe(boundsOf(option!))
        told.add(option!)
        checked++
      }
    }
  }
  expect([...told].toSorted()).toEqual(Object.keys(QUEUE_OPTIONS).toSorted())
  expect(checked).toBeGreaterThanOrEqual(2 * told.size)
})

/** The option's name in the protocol; the client's `retry.initial` is `retryInitialMs` there. */
function optionNamed(name: string): QueueOptionName | undefined {
  return (Object.keys(QUEUE_OPTIONS) as QueueOptionName[]).find((option) => clientName(option) === name)
}

function clientName(option: QueueOptionName): string {
  return option
    .replace(/Ms$/, '')
    .replace(
      /^(retry|retain|rate|keyRate)([A-Z])/,
      (_, group: string, letter: string) => `${group}.${letter.toLowerCase()}`,
    )
}

function valueOf(option: QueueOptionName, text: string): unknown {
  if (/[rR]ateMessages$/.test(option) && text === 'none') return 0
  if (option === 'deadLetter') return text === 'null' ? '' : text
  const literal: unknown = JSON.parse(text.replaceAll("'", '"'))
  return option.endsWith('Ms') ? parseDuration(literal) : literal
}

function boundsOf(option: QueueOptionName): string {
  const known = QUEUE_OPTIONS[option]
  if (known.kind === 'choice') return known.choices.map((choice) => `\`'${choice}'\``).join(', ')
  if (known.kind === 'flag') return '`true`, `false`'
  if (known.kind === 'name') return 'a queue, or `null`'
  const { min, max } = known
  if (option.endsWith('Ms')) {
    const least = 'least' in known ? `0, or ${known.least / 1_000} s` : min === 0 ? '0' : `${min} ms`
    if (max === LIMITS.ratePerMsMax) return `${least} to 30 days`
    expect(max).toBe(LIMITS.delayMsMax)
    return `${least} to 100 years`
  }
  // `rate: null`, and not a number, means that there is no limit.
  if (/[rR]ateMessages$/.test(option)) return `1 to ${max.toLocaleString('en')}`
  const word = 'word' in known ? `, or \`'${known.word}'\`` : ''
  return max === Number.MAX_SAFE_INTEGER ? `from ${min}` : `${min} to ${max.toLocaleString('en')}${word}`
}

it('has all options of `connect` in one table, with their defaults and bounds', () => {
  const { tables } = pages.find(({ name }) => name === 'connecting')!
  const { rows } = tables.find(({ header }) => header[0] === 'connect option')!
  const settingsOf = (options: ConnectOptions): object => connectSettings('sluice://localhost', options)
  let checked = 0
  for (const [cell, fallback, bounds] of rows) {
    const name = unquoted(cell!)
    if (fallback === 'none') continue
    const expected = quantity(fallback!)
    const setting = (value?: number): unknown =>
      Object.entries(settingsOf(value === undefined ? {} : { [name]: value })).find(
        ([key]) => key === name || key === `${name}Ms`,
      )?.[1]
    expect(setting(), name).toBe(expected)
    checked++
    if (bounds === 'a duration') continue
    const [min, max] = bounds!.split(' to ').map(quantity) as [number, number]
    expect([setting(min), setting(max)], name).toEqual([min, max])
    for (const beyond of [min - 1, max + 1])
      expect(() => setting(beyond), `${name}: ${beyond}`).toThrow(/must be/)
  }
  expect(checked).toBe(rows.length - 2)
})

const UNITS: Readonly<Record<string, number>> = {
  byte: 1,
  ms: 1,
  min: 60_000,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
}

/** The value of a quantity in the tables: `'5s'`, `10000`, 16 MiB, 4 GiB less 1 byte. */
function quantity(text: string): number {
  const bare = unquoted(text)
  if (bare.startsWith("'")) return parseDuration(bare.slice(1, -1))
  const [, digits, unit, less] = /^([\d,]+)(?: (\w+))?(?: less (\d+) byte)?$/.exec(bare)!
  return Number(digits!.replaceAll(',', '')) * (unit === undefined ? 1 : UNITS[unit]!) - Number(less ?? 0)
}

it('lists the same options as the comments of `connect` and `createClient`', () => {
  const source = readFileSync(join(guideDirectory, '../../packages/client/src/connect.ts'), 'utf8')
  const known = namedOptions(pages.filter(({ name }) => name === 'connecting'))
    .filter(([type]) => type === 'ConnectOptions')
    .map(([, [name]]) => name!)
  const ofConnect = ['connectTimeout', 'signal']
  for (const [call, expected] of [
    ['connect', known],
    ['createClient', known.filter((name) => !ofConnect.includes(name))],
  ] as const) {
    const before = source.slice(0, source.indexOf(`\nexport function ${call}(`))
    const comment = before.slice(before.lastIndexOf('/**'))
    const options = /@param options ([^.]*)\./.exec(comment)![1]!
    const named = [...options.matchAll(/`(\w+)`/g)].map(([, name]) => name!)
    expect(named.toSorted(), call).toEqual(expected.toSorted())
  }
})

it('lists only options of consumers that the comments of their calls name', () => {
  const source = readFileSync(join(guideDirectory, '../../packages/client/src/client.ts'), 'utf8')
  for (const [call, type] of [
    ['consume', 'ConsumeOptions'],
    ['messages', 'MessagesOptions'],
    ['pull', 'PullOptions'],
  ] as const) {
    const before = source.slice(0, source.search(new RegExp(`^  (?:async )?${call}<`, 'm')))
    const comment = before.slice(before.lastIndexOf('/**'))
    const known = namedOptions(pages).flatMap(([of, [name]]) => (of === type ? [name!] : []))
    expect(known.length).toBeGreaterThanOrEqual(4)
    for (const name of known) expect(comment, `${call} and its option ${name}`).toContain(`\`${name}`)
  }
})

it('names only errors that exist, and explains what to do about each that it lists', () => {
  let listed = 0
  const named = new Set<string>()
  for (const { file, text, tables } of pages) {
    for (const match of text.matchAll(/`([A-Z]+(?:_[A-Z]+)*)`/g)) {
      const word = match[1]!
      if (!word.includes('_') && !Object.hasOwn(ERRORS, word)) continue
      if (word.startsWith('SLUICE_')) continue
      expect(Object.keys(ERRORS), `${file} names ${word}`).toContain(word)
      named.add(word)
    }
    for (const match of text.matchAll(/\bprints ([A-Z]+_[A-Z_]+)\b/g))
      expect(Object.keys(ERRORS), `${file} prints ${match[1]}`).toContain(match[1])
    for (const { line, rows } of tables.filter(({ header }) => header[0] === 'code')) {
      for (const [code, advice] of rows) {
        expect(Object.keys(ERRORS), `${file}:${line}`).toContain(unquoted(code!))
        expect(advice?.length, `${file}:${line}: ${code}`).toBeGreaterThan(10)
        listed++
      }
    }
  }
  expect(listed).toBeGreaterThanOrEqual(50)
  expect(named.size).toBeGreaterThanOrEqual(30)
})

it('lists every error once on the page of errors', () => {
  const { tables } = pages.find(({ name }) => name === 'errors')!
  const listed = tables.flatMap(({ rows }) => rows.map(([code]) => unquoted(code!)))
  expect(listed.toSorted()).toEqual(Object.keys(ERRORS).toSorted())
})

/** Commands that have subcommands. */
const GROUPS = ['queue', 'stream', 'group', 'dead', 'topic', 'schedule']

it('shows only commands and flags that the command line has', async () => {
  const flagsOf = new Map<string, Set<string>>()
  for (const { text } of pages) {
    for (const [line] of text.matchAll(/^sluice .+$/gm)) {
      const words = line.replace(/ +#.*$/, '').split(' ')
      const command = words.slice(1, GROUPS.includes(words[1]!) ? 3 : 2).join(' ')
      const flags = flagsOf.get(command) ?? new Set()
      flagsOf.set(command, flags)
      for (const word of words) if (word.startsWith('--')) flags.add(word)
    }
  }
  let checked = 0
  const waiting = [...flagsOf]
  const work = async (): Promise<void> => {
    for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
      const [command, flags] = next
      const help = await helpOf(command.split(' '))
      expect(help).toMatch(new RegExp(`^sluice ${command}[ \\n]`))
      const known = flagsIn(help)
      for (const flag of flags) expect([...known], `sluice ${command}`).toContain(flag)
      checked += flags.size
    }
  }
  await Promise.all([work(), work()])
  expect(flagsOf.size).toBeGreaterThanOrEqual(18)
  expect(checked).toBeGreaterThanOrEqual(45)
})

function flagsIn(help: string): Set<string> {
  const flags = new Set([...help.matchAll(/--[a-z-]+/g)].map(([flag]) => flag))
  for (const flag of ['--no-ack']) if (flags.has('--ack')) flags.add(flag)
  return flags
}

it('links only to files and headings that exist, and to every page from the index', () => {
  let checked = 0
  for (const { file, text } of pages) {
    for (const match of text.matchAll(/\]\(([^)]+)\)/g)) {
      if (/^[a-z]+:/.test(match[1]!)) continue
      const [path, heading] = match[1]!.split('#') as [string, string | undefined]
      const target = path === '' ? join(guideDirectory, file) : join(guideDirectory, dirname(file), path)
      expect(existsSync(target), `${file} links to ${match[1]}`).toBe(true)
      if (heading !== undefined) expect(headingsOf(target), `${file} links to ${match[1]}`).toContain(heading)
      checked++
    }
  }
  expect(checked).toBeGreaterThan(60)
  const index = pages.find(({ name }) => name === 'README')!
  for (const { file } of pages) if (file !== index.file) expect(index.text).toContain(`](${file})`)
})

function headingsOf(file: string): string[] {
  return [...readFileSync(file, 'utf8').matchAll(/^#+ (.+)$/gm)].map((match) =>
    match[1]!
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  )
}

it('has tables whose rows are as wide as their headers', () => {
  const all = pages.flatMap(({ file, tables }) => tables.map((table): [string, Table] => [file, table]))
  for (const [file, { line, header, rows }] of all)
    for (const row of rows) expect(row.length, `${file}:${line}: ${row.join(' | ')}`).toBe(header.length)
  expect(all.length).toBeGreaterThan(30)
})

function unquoted(cell: string): string {
  return cell.replace(/^`|`$/g, '')
}
