/** The shape of the tree: imports, the length of files and functions, and the files that know byte offsets. */
import { describe, expect, it } from 'vitest'
import { CIRCLES, FLOORS, LAYOUTS, LONG_FILES, LONG_FUNCTIONS, RAW_OFFSETS } from './exceptions.js'
import { againstFloors, circlesIn, edgeOf, graphOf, pathBetween } from './graph.js'
import { packageSources, parseSource } from './source.js'

const FUNCTION_LINES_MAX = 70
const FILE_LINES_MAX = 700

const sources = packageSources()

/** Expects that the findings are exactly the exceptions. */
function expectOnly(found: Iterable<string>, exceptions: Readonly<Record<string, string>>): void {
  const all = new Set(found)
  const excepted = Object.keys(exceptions)
  expect({
    violations: [...all].filter((each) => !excepted.includes(each)),
    exceptionsNoLongerNeeded: excepted.filter((each) => !all.has(each)),
  }).toEqual({ violations: [], exceptionsNoLongerNeeded: [] })
}

it('looks at all packages', () => {
  const sum = (count: (source: (typeof sources)[number]) => number): number =>
    sources.reduce((total, source) => total + count(source), 0)
  for (const name of ['protocol', 'server', 'client'])
    expect(sources.filter(({ path }) => path.startsWith(`packages/${name}/src/`)).length).toBeGreaterThan(15)
  expect(sum(({ imports }) => imports.length)).toBeGreaterThan(500)
  expect(sum(({ functions }) => functions.length)).toBeGreaterThan(1_500)
  expect(sum(({ rawOffsets }) => rawOffsets.length)).toBeGreaterThan(50)
  // Each import must be a parsed file or a hand-written declaration.
  const paths = new Set(sources.map(({ path }) => path))
  expect(sources.flatMap(({ imports }) => imports.filter((path) => !paths.has(path)))).toEqual([])
})

describe('imports', () => {
  it('form no circle', () => {
    expect(circlesIn(graphOf(sources, Object.keys(CIRCLES)))).toEqual([])
  })

  it.each(Object.keys(CIRCLES))('would form a circle without the exception %s', (text) => {
    const { from, to } = edgeOf(text)
    expect(graphOf(sources).get(from)).toContain(to)
    expect(pathBetween(graphOf(sources, Object.keys(CIRCLES)), to, from)).toBeDefined()
  })

  it('lead to lower layers', () => {
    expectOnly(againstFloors(sources), FLOORS)
  })
})

it(`no function has more than ${FUNCTION_LINES_MAX} lines`, () => {
  const long = sources.flatMap(({ path, functions }) =>
    functions.filter(({ lines }) => lines > FUNCTION_LINES_MAX).map(({ name }) => `${path}: ${name}`),
  )
  expectOnly(long, LONG_FUNCTIONS)
})

it(`no source file has more than ${FILE_LINES_MAX} lines`, () => {
  const long = sources.filter(({ lines }) => lines > FILE_LINES_MAX).map(({ path }) => path)
  expectOnly(long, LONG_FILES)
})

it('only the protocol knows the offsets of the fields of batches, records and frames', () => {
  const raw = sources.filter(
    ({ path, rawOffsets }) => rawOffsets.length > 0 && !path.startsWith('packages/protocol/src/'),
  )
  expectOnly(
    raw.map(({ path }) => path),
    { ...LAYOUTS, ...RAW_OFFSETS },
  )
})

describe('the parser', () => {
  const parse = (text: string): ReturnType<typeof parseSource> =>
    parseSource('packages/server/src/log/some.ts', text)

  it('finds each kind of import, including types, and none in strings and comments', () => {
    const text = `
      import { a } from './a.js'
      import type { B } from '../queue/b.js'
      import { readFile } from 'node:fs'
      export * from './c.js'
      export { d } from './d.js'
      type E = import('./e.js').E
      const f = await import('./f.js')
      import { u64 } from '@sluice/protocol'
      // import { g } from './g.js'
      const h = "import { h } from './h.js'"`
    expect(parse(text).imports).toEqual([
      'packages/server/src/log/a.ts',
      'packages/server/src/queue/b.ts',
      'packages/server/src/log/c.ts',
      'packages/server/src/log/d.ts',
      'packages/server/src/log/e.ts',
      'packages/server/src/log/f.ts',
      'packages/protocol/src/index.ts',
    ])
  })

  it('measures functions and names them', () => {
    const text = `class A {
  constructor() {}
  #b(): void {
    const c = () => {
      '}'
    }
  }
}
function d() {
}
`
    const { functions, lines } = parse(text)
    expect(lines).toBe(10)
    expect(functions.map(({ name, lines }) => `${name} ${lines}`)).toEqual([
      'A.constructor 1',
      'A.#b 5',
      'A.#b.c 3',
      'd 2',
    ])
  })

  it.each([
    'readU32(bytes, at + 24)',
    'writeU64(this.tail.bytes, to + HEAD + 16, value)',
    'bytes[at + 4] === 1',
    'record[4]! & 1',
    'view.getUint32(at + 8)',
  ])('recognises %s as a raw offset', (text) => {
    expect(parse(`\n${text}`).rawOffsets).toEqual([2])
  })

  it.each(['readU32(bytes, at)', 'bytes[at + FLAGS_AT]', 'words[at + 1]', 'bytes[0]', '"bytes[at + 4]"'])(
    'does not recognise %s as a raw offset',
    (text) => {
      expect(parse(text).rawOffsets).toEqual([])
    },
  )
})

describe('the graph', () => {
  const file = (path: string, ...imports: string[]): (typeof sources)[number] => ({
    ...{ path, imports, lines: 1, functions: [], rawOffsets: [] },
  })

  it('finds circles of any length, each once', () => {
    const graph = graphOf([
      file('a', 'b'),
      file('b', 'c'),
      file('c', 'a', 'd'),
      file('d', 'e'),
      file('e', 'd'),
    ])
    expect(circlesIn(graph)).toEqual(['a → b → c', 'd → e'])
    expect(circlesIn(graphOf([file('a', 'b'), file('b', 'a')], ['b → a']))).toEqual([])
  })

  it('lets each layer import from lower layers', () => {
    const server = 'packages/server/src'
    const protocol = 'packages/protocol/src/index.ts'
    const client = 'packages/client/src/index.ts'
    const allowed = [
      file(`${server}/queue/a.ts`, `${server}/queue/b.ts`, protocol),
      file(`${server}/state/a.ts`, `${server}/queue/a.ts`, `${server}/log/a.ts`),
      file(`${server}/server.ts`, `${server}/net/a.ts`, `${server}/version.ts`),
      file(`${server}/cli/a.ts`, `${server}/server.ts`, client),
      file(client, protocol),
    ]
    expect(againstFloors(allowed)).toEqual([])
    const refused = [
      [`${server}/queue/a.ts`, `${server}/log/a.ts`],
      [`${server}/log/a.ts`, `${server}/queue/a.ts`],
      [`${server}/state/a.ts`, `${server}/broker/a.ts`],
      [`${server}/net/a.ts`, `${server}/session/a.ts`],
      [`${server}/broker/a.ts`, client],
      [`${server}/net/a.ts`, `${server}/server.ts`],
      [`${server}/session/a.ts`, `${server}/testing/bench.ts`],
      [client, `${server}/queue/a.ts`],
      [protocol, client],
      ['packages/other/src/a.ts', protocol],
    ] as const
    expect(againstFloors(refused.map(([from, to]) => file(from, to)))).toEqual(
      refused.map(([from, to]) => `${from} → ${to}`),
    )
  })
})
