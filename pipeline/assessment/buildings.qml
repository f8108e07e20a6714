<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="Symbology">
  <renderer-v2 type="singleSymbol" forceraster="0" symbollevels="0" enableorderby="0">
    <symbols>
      <symbol name="0" type="fill" alpha="1"><layer class="SimpleFill" enabled="1"><Option type="Map"><Option name="style" type="QString" value="solid"/><Option name="color" type="QString" value="0,114,178,60"/><Option name="outline_color" type="QString" value="0,114,178,255"/><Option name="outline_width" type="QString" value="0.4"/></Option></layer></symbol>
    </symbols>
  </renderer-v2>
</qgis>
